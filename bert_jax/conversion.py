"""Run folders from Hugging Face's model folders, and back. What is written is read again and must compute the same."""

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax import run_folder
from bert_jax.checkpoint import huggingface, huggingface_config, tensorflow1
from bert_jax.checkpoint.families import FAMILIES
from bert_jax.checkpoint.huggingface import Found
from bert_jax.checkpoint.store import CheckpointConfig, CheckpointStore
from bert_jax.checkpoint.tensors import WEIGHTS, write_safetensors
from bert_jax.config import to_dict
from bert_jax.data.pipeline import DataConfig
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import whole_file, write_json
from bert_jax.library import LoadedEncoder, check_vocabulary, load, load_run
from bert_jax.model.build import Model
from bert_jax.model.heads import COUNTED
from bert_jax.model_card import model_card
from bert_jax.objectives import base as objectives
from bert_jax.tasks import imported, pretraining, text
from bert_jax.train.loop import TrainConfig

logger = logging.getLogger(__name__)
Logits = dict[str, np.ndarray]  # by head, and 'hidden' for the last hidden states
TOLERANCE = 1e-4  # of logits in float32, absolute


def import_run(source: Path, output: Path, fresh_heads: tuple[str, ...] = (), tensorflow: bool = False) -> float:
    """Writes a run folder from a folder in Hugging Face's format, or from an original checkpoint of BERT or ALBERT.

    Args:
      source: a folder with config.json, safetensors and the tokenizer's files; or the prefix of the checkpoint's files, in a
        folder as they released it (see checkpoint/tensorflow1.py).
      output: the run folder; its config.json, which makes it one, is written last.
      fresh_heads: heads to add where the source does not hold them; an encoder without any gets an MLM head.
      tensorflow: which of the two the source is.

    Returns:
      The largest difference of logits that the checks found.

    Raises:
      UserError: the output exists, the input is not supported or damaged, or what was written computes something else.
    """
    check_new(output)
    config, tensors = tensorflow1.read_release(source) if tensorflow else (None, None)
    folder = source.parent if tensorflow else source
    found = huggingface.look(folder, fresh_heads, config, tensors)
    if not found.heads:
        found = huggingface.look(folder, ("mlm",), config, tensors)
    tokenizer = Tokenizer.load(folder)
    check_vocabulary(tokenizer, found.model.config, folder)
    for name in found.fresh:
        logger.info("head %s: not in %s, freshly initialised", name, source)
    values = to_dict(run_config(found))
    encoder = LoadedEncoder(found.model, huggingface.load(found), found.labels, tokenizer)
    output.mkdir(parents=True, exist_ok=True)  # not before everything could be read
    tokenizer.save(output / run_folder.TOKENIZER)
    if found.labels and not COUNTED.isdisjoint(found.heads):
        write_json(output / run_folder.LABELS, found.labels)
    if found.fresh:
        write_json(output / run_folder.FRESH_HEADS, found.fresh)

    store = CheckpointStore(output, CheckpointConfig(), in_background=False)
    store.save(0, {"params": encoder.params}, values, {})
    store.wait()
    inputs = probe_inputs(encoder)
    expected = probe(encoder, inputs)
    del encoder  # one copy in memory at a time
    difference = compare(expected, probe(load_run(output, values), inputs), f"{output}: what was written")
    their_config = found.config | ({"id2label": dict(enumerate(found.labels))} if found.labels else {})
    opinion = second_opinion(folder, their_config, inputs, expected, set(found.heads) - set(found.fresh))
    run_folder.write_config(output, values)
    return max(difference, opinion)


def run_config(found: Found) -> Any:
    """The config of a task that an imported model can be used for."""
    model = found.model.config
    if "classification" in found.heads:
        data = text.DataConfig(sequence_length=min(128, model.max_positions))
        return text.Config(model=model, data=data, train=TrainConfig(num_steps=1))
    if known := tuple(name for name in found.heads if name in objectives.available()):
        return pretraining.Config(
            model=model, objectives=known, data=DataConfig(sequence_length=min(512, model.max_positions))
        )
    return imported.Config(model=model)


def export_run(workdir: Path, output: Path, step: int | None = None) -> float:
    """Writes a folder that transformers loads, from a run.

    Args:
      workdir: the run folder.
      output: the new folder; its config.json, without which it is none, is written last.
      step: of the checkpoint, the newest for None.

    Returns:
      The largest difference of logits that the checks found.

    Raises:
      UserError: the output exists, no family of theirs computes the encoder, or what was written computes something else.
    """
    check_new(output)
    encoder = in_float32(load(workdir, step))
    tokenizer = encoder.tokenizer
    assert tokenizer is not None, "every run folder has one"
    family, config = huggingface_config.family_of(encoder.model.config)
    fresh = workdir / run_folder.FRESH_HEADS
    untrained = json.loads(fresh.read_text()) if fresh.exists() else []
    trained = tuple(name for name in encoder.model.heads if name not in untrained)
    architecture, heads = huggingface_config.architecture_of(family, trained)
    for name in set(encoder.model.heads) - set(heads):
        reason = "it was never trained" if name in untrained else f"{architecture} has none"
        logger.info("head %s is left out: %s", name, reason)
    if encoder.model.config.pooler and not huggingface_config.class_has_pooler(encoder.model.config, heads):
        logger.info("the pooler is left out: %s has none", architecture)
    config |= {
        "architectures": [architecture],
        "vocab_size": tokenizer.vocab_size,  # the table may have more rows for the hardware's sake
        "pad_token_id": config.get("pad_token_id", tokenizer.pad_id),  # RoBERTa's counts its positions from it
        **dict.fromkeys(("bos_token_id", "cls_token_id"), tokenizer.cls_id),
        **dict.fromkeys(("eos_token_id", "sep_token_id"), tokenizer.sep_id),
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    if encoder.labels:
        config["id2label"] = {str(number): label for number, label in enumerate(encoder.labels)}
        config["label2id"] = {label: number for number, label in enumerate(encoder.labels)}
    output.mkdir(parents=True, exist_ok=True)
    tokenizer.save(output, max_length=encoder.model.config.max_positions)
    abstract = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), encoder.model.abstract)
    empty, tensors = (
        huggingface.exported(encoder.model, params, family, heads, tokenizer.vocab_size)
        for params in (abstract, encoder.params)
    )
    shapes = {name: array.shape for name, array in empty}
    write_safetensors(output / WEIGHTS, shapes, tensors)
    with whole_file(output / "README.md") as file:
        file.write(model_card(workdir, encoder, architecture, sum(map(math.prod, shapes.values()))))

    inputs = probe_inputs(encoder)
    expected = {name: logits for name, logits in probe(encoder, inputs).items() if name in (*heads, "hidden")}
    del encoder
    again = huggingface.look(output, config=config)
    read = LoadedEncoder(again.model, huggingface.load(again), again.labels, tokenizer)
    difference = compare(expected, probe(read, inputs), f"{output}: what was written")
    opinion = second_opinion(output, config, inputs, expected, set(heads))
    write_json(output / huggingface_config.CONFIG, config)
    return max(difference, opinion)


def in_float32(encoder: LoadedEncoder) -> LoadedEncoder:
    """The same encoder, stored and computed in float32."""
    config = dataclasses.replace(encoder.model.config, dtype="float32", param_dtype="float32")
    params = jax.tree.map(lambda x: x.astype(np.float32), encoder.params)
    return dataclasses.replace(encoder, model=Model.build(config, encoder.model.heads), params=params)


def check_new(output: Path) -> None:
    """Raises UserError for a folder that is not empty."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: exists and is not empty; name a new folder")


# ----------------------------------------------------------------------------------------------------------------------
# The gate
# ----------------------------------------------------------------------------------------------------------------------


def probe_inputs(encoder: LoadedEncoder) -> dict[str, np.ndarray]:
    """Random token ids, segments and padding [4, L]."""
    config = encoder.model.config
    assert encoder.tokenizer is not None
    vocab_size = encoder.tokenizer.vocab_size
    rng = np.random.default_rng(0)
    length = min(24, config.max_positions)
    lengths = np.array([length, length, max(1, length // 2), max(1, length // 3)])
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    types = (np.arange(length) >= lengths[:, None] // 2) * mask * (config.num_token_types > 1)
    # Not the smallest ids: some implementations find padding, and from it positions, by its id.
    ids = rng.integers(min(5, vocab_size - 1), vocab_size, (4, length), dtype=np.int32)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types.astype(np.int32)}


def probe(encoder: LoadedEncoder, inputs: dict[str, np.ndarray]) -> Logits:
    """What an encoder computes of the inputs, in float32; zero at the positions of padding."""
    assert encoder.tokenizer is not None
    with jax.default_matmul_precision("highest"):
        output = encoder(**inputs)
    found = {name: np.asarray(logits, np.float32) for name, logits in output.logits.items()}
    if "mlm" in found:
        found["mlm"] = found["mlm"][..., : encoder.tokenizer.vocab_size]
    found["hidden"] = np.asarray(output.hidden_states[-1], np.float32)
    return {name: without_padding(array, inputs["attention_mask"]) for name, array in found.items()}


def without_padding(array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Zeros at the positions of padding of an array [B, L, ...]; others are returned as they are."""
    if array.shape[:2] != mask.shape:
        return array
    return array * mask.reshape(*mask.shape, *[1] * (array.ndim - 2))


def compare(expected: Mapping[str, np.ndarray], computed: Mapping[str, np.ndarray], what: str) -> float:
    """The largest difference. Raises UserError where it exceeds `TOLERANCE`."""
    differences = {name: float(np.abs(expected[name] - computed[name]).max()) for name in expected if name in computed}
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            raise UserError(
                f"{what} computes something else: {name} differs by {difference:.2g}, more than {TOLERANCE:.2g}; "
                "the folder is left without its config.json: remove it"
            )
    return max(differences.values())


def second_opinion(
    folder: Path, config: dict[str, Any], inputs: Logits, expected: Logits, stored_heads: set[str]
) -> float:
    """The largest difference to what transformers computes of the same inputs; 0 where it is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        logger.info("transformers and torch are not installed: no second opinion")
        return 0.0
    transformers.utils.logging.disable_progress_bar()
    architecture = (config.get("architectures") or [""])[0]
    named = FAMILIES[config["model_type"]].architectures.get(architecture)
    if named is None or not stored_heads.issuperset(named):
        logger.info("no second opinion: %s names no class of transformers whose heads it holds", folder)
        return 0.0
    theirs = transformers.AutoConfig.for_model(**{name: value for name, value in config.items() if name != "dtype"})
    try:
        model = getattr(transformers, architecture).from_pretrained(folder, config=theirs, dtype=torch.float32).eval()
    except Exception as error:  # of many types
        raise UserError(
            f"{folder}: transformers does not load it ({str(error).splitlines()[0]}); get it again"
        ) from None
    if config.get("type_vocab_size", 0) < 2:
        inputs = {name: array for name, array in inputs.items() if name != "token_type_ids"}
    with torch.no_grad():
        output = model(**{name: torch.from_numpy(array).long() for name, array in inputs.items()})
    their_names = {"mlm": "prediction_logits", "nsp": "seq_relationship_logits", "sop": "sop_logits"}
    computed = {}
    for head in named:
        if head == "qa":
            array = torch.stack([output.start_logits, output.end_logits], -1).numpy()
        else:
            array = (output[their_names[head]] if their_names.get(head) in output else output.logits).numpy()
        if head == "mlm":
            array = array[..., : expected["mlm"].shape[-1]]
        computed[head] = without_padding(array, inputs["attention_mask"])
    if not named:
        computed["hidden"] = without_padding(output.last_hidden_state.numpy(), inputs["attention_mask"])
    return compare(expected, computed, f"{folder}: transformers")

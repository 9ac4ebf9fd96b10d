"""Run folders from Hugging Face's model folders, and back. What is written is read again and must compute the same."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax.config import to_dict
from bert_jax.conversion.model_card import model_card
from bert_jax.conversion.parity import compare, probe, probe_inputs, second_opinion
from bert_jax.data.pretraining.stream import DataConfig
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import write_json, write_text
from bert_jax.formats import huggingface, huggingface_config, tensorflow1
from bert_jax.formats.heads import COUNTED
from bert_jax.formats.huggingface import Found
from bert_jax.formats.huggingface_labels import PROBLEM_TYPES
from bert_jax.formats.rows import Family
from bert_jax.formats.tensors import WEIGHTS, write_safetensors
from bert_jax.library import LoadedEncoder, check_vocabulary, load, load_run
from bert_jax.lock import LOCK, locked
from bert_jax.model.build import Model
from bert_jax.objectives import base as objectives
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.checkpoints import CheckpointConfig, CheckpointStore
from bert_jax.tasks import imported, pretraining, qa, text, tokens
from bert_jax.tasks.base import save_tokenizer, warn_of_padding
from bert_jax.train.loop import TrainConfig

logger = logging.getLogger(__name__)


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
    warn_of_padding(found.model.config, tokenizer)
    if (rows := found.model.config.vocab_size) > tokenizer.vocab_size:
        logger.info("the embedding has %d rows for %d tokens; all of them are kept", rows, tokenizer.vocab_size)
    for name in found.fresh:
        logger.info("head %s: not in %s, freshly initialised", name, source)
    values = to_dict(run_config(found))
    encoder = LoadedEncoder(found.model, huggingface.load(found), found.labels, tokenizer)
    with claimed(output):  # not before everything could be read
        save_tokenizer(tokenizer, output)
        has_classes = "token" in found.heads or ("classification" in found.heads and found.problem != "regression")
        if found.labels and has_classes:
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
    model, trained = found.model.config, set(found.heads) - set(found.fresh)
    one_step = TrainConfig(num_steps=1)  # where there are none, they are counted in a training file
    if "classification" in found.heads:
        data = text.DataConfig(sequence_length=min(128, model.max_positions))
        return text.Config(model=model, data=data, problem=found.problem, train=one_step)
    if "token" in trained:
        words = tokens.DataConfig()
        words = dataclasses.replace(words, sequence_length=min(words.sequence_length, model.max_positions))
        return tokens.Config(model=model, data=words, train=one_step)
    if "qa" in trained:
        return qa.Config(model=model, data=windows_for(model.max_positions), train=one_step)
    if known := tuple(name for name in found.heads if name in objectives.available()):
        return pretraining.Config(
            model=model, objectives=known, data=DataConfig(sequence_length=min(512, model.max_positions))
        )
    return imported.Config(model=model)


def windows_for(max_positions: int) -> qa.DataConfig:
    """The windows of question answering; where the model has no room for those of the default, all of them in proportion."""
    data = qa.DataConfig()
    if max_positions >= data.sequence_length:
        return data
    doc_stride, max_query_length = (
        max(1, size * max_positions // data.sequence_length) for size in (data.doc_stride, data.max_query_length)
    )
    return qa.DataConfig(sequence_length=max_positions, doc_stride=doc_stride, max_query_length=max_query_length)


def export_run(
    workdir: Path, output: Path, step: int | None = None, wanted_heads: tuple[str, ...] | None = None
) -> float:
    """Writes a folder that transformers loads, from a run.

    Args:
      workdir: the run folder.
      output: the new folder; its config.json, without which it is none, is written last.
      step: of the checkpoint, the newest for None.
      wanted_heads: heads to export; for None all that were trained, as far as one class of theirs holds them.

    Returns:
      The largest difference of logits that the checks found.

    Raises:
      UserError: the output exists, a head is not there or in no class of theirs,
        no family of theirs computes the encoder, or what was written computes something else.
    """
    check_new(output)
    encoder = in_float32(load(workdir, step))
    tokenizer = encoder.tokenizer
    assert tokenizer is not None, "every run folder has a tokenizer"
    family, config = huggingface_config.family_of(encoder.model.config)
    architecture, heads = exported_class(workdir, encoder.model, family, wanted_heads)
    config |= their_config(workdir, encoder, config, architecture, heads)
    with claimed(output):
        tokenizer.save(output, max_length=encoder.model.config.max_positions)
        abstract = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), encoder.model.abstract)
        empty, tensors = (
            huggingface.exported(encoder.model, params, family, heads) for params in (abstract, encoder.params)
        )
        shapes = {name: array.shape for name, array in empty}
        write_safetensors(output / WEIGHTS, shapes, tensors)
        write_text(
            output / "README.md", model_card(workdir, encoder, architecture, sum(map(math.prod, shapes.values())))
        )

        inputs = probe_inputs(encoder)
        expected = {name: logits for name, logits in probe(encoder, inputs).items() if name in (*heads, "hidden")}
        del encoder
        again = huggingface.look(output, config=config)
        read = LoadedEncoder(again.model, huggingface.load(again), again.labels, tokenizer)
        difference = compare(expected, probe(read, inputs), f"{output}: what was written")
        opinion = second_opinion(output, config, inputs, expected, set(heads))
        write_json(output / huggingface_config.CONFIG, config)
        return max(difference, opinion)


def their_config(
    workdir: Path,
    encoder: LoadedEncoder,
    config: dict[str, Any],
    architecture: str,
    heads: tuple[str, ...],
) -> dict[str, Any]:
    """Returns what their config.json holds in addition to the encoder's options in `config`: class, tokens, labels."""
    tokenizer = encoder.tokenizer
    assert tokenizer is not None, "every run folder has a tokenizer"
    values: dict[str, Any] = {
        "architectures": [architecture],
        "pad_token_id": config.get("pad_token_id", tokenizer.pad_id),  # RoBERTa's counts its positions from it
        **dict.fromkeys(("bos_token_id", "cls_token_id"), tokenizer.cls_id),
        **dict.fromkeys(("eos_token_id", "sep_token_id"), tokenizer.sep_id),
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    if "classification" in heads:
        ours = run_folder.read_config(workdir)
        without_names = "classification" if encoder.labels else "regression"  # a task of GLUE is one or the other
        values["problem_type"] = PROBLEM_TYPES[ours.get("problem", without_names)]
    for name in COUNTED.intersection(heads):
        num_classes = encoder.model.abstract["heads"][name]["dense"]["bias"].shape[0]
        labels = encoder.labels or [f"LABEL_{number}" for number in range(num_classes)]  # a number's output has no name
        values["id2label"] = {str(number): label for number, label in enumerate(labels)}
        values["label2id"] = {label: number for number, label in enumerate(labels)}
    return values


def exported_class(
    workdir: Path, model: Model, family: Family, wanted: tuple[str, ...] | None
) -> tuple[str, tuple[str, ...]]:
    """The class of theirs to export a run to, and our heads in it; tells what is left out.

    Raises:
      UserError: `wanted` heads that the run does not have, or that no class of theirs holds together.
    """
    untrained = run_folder.read_value(workdir, run_folder.FRESH_HEADS, [])
    if unknown := [name for name in wanted or () if name not in model.heads]:
        raise UserError(f"{workdir}: has no head {unknown[0]}, only {', '.join(model.heads)}")
    candidates = tuple(name for name in model.heads if name not in untrained) if wanted is None else wanted
    architecture, heads = huggingface_config.architecture_of(family, candidates)
    if wanted and set(heads) != set(wanted):
        raise UserError(f"heads {', '.join(wanted)}: no class of {family.model_type} has them together; take fewer")
    for name in set(model.heads) - set(heads) if wanted is None else ():
        reason = "it was never trained" if name in untrained else f"{architecture} has none"
        logger.info("head %s is left out: %s", name, reason)
    if model.config.pooler and not huggingface_config.class_has_pooler(model.config, heads):
        logger.info("the pooler is left out: %s has none", architecture)
    return architecture, heads


def in_float32(encoder: LoadedEncoder) -> LoadedEncoder:
    """The same encoder, stored and computed in float32."""
    config = dataclasses.replace(encoder.model.config, dtype="float32", param_dtype="float32")
    params = jax.tree.map(lambda x: x.astype(np.float32), encoder.params)
    return dataclasses.replace(encoder, model=Model.build(config, encoder.model.heads), params=params)


def check_new(output: Path) -> None:
    """Raises UserError for a folder that is not empty."""
    if output.exists() and (not output.is_dir() or any(path.name != LOCK for path in output.iterdir())):
        raise UserError(f"{output}: exists and is not empty; name a new folder")


@contextlib.contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Makes a new folder for this process alone. Raises UserError as `check_new`, and if another process writes it."""
    with locked(output, "wait for it, or name another folder"):
        check_new(output)  # another process may have written it since
        yield
        (output / LOCK).unlink(missing_ok=True)  # who opened it before finds a folder that is not empty

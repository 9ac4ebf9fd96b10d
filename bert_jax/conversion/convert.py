"""Imports and exports models in Hugging Face's format; what is written is read again and must compute the same."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bert_jax.config import from_dict, to_dict
from bert_jax.conversion.model_card import model_card
from bert_jax.conversion.parity import compare, compare_with_transformers, probe, probe_inputs
from bert_jax.data.pretraining.stream import DataConfig
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import write_json, write_text
from bert_jax.formats import huggingface, huggingface_config, tensorflow1
from bert_jax.formats.families import HEADS
from bert_jax.formats.huggingface import ModelFolder
from bert_jax.formats.rows import Family
from bert_jax.formats.tensors import WEIGHTS, write_safetensors
from bert_jax.library import LoadedEncoder, check_vocabulary, load, load_run
from bert_jax.lock import LOCK, locked
from bert_jax.model.build import Model
from bert_jax.objectives import rtd
from bert_jax.objectives.base import available
from bert_jax.run_folder.checkpoints import CheckpointConfig, CheckpointStore
from bert_jax.run_folder.folder import FRESH_HEADS, LABELS, read_config, read_value, write_config
from bert_jax.tasks import imported, pretraining, qa, text, tokens
from bert_jax.tasks.base import save_tokenizer, warn_of_padding
from bert_jax.train.loop import TrainConfig

logger = logging.getLogger(__name__)
GENERATOR = "generator"  # the module of a run, and the folder of an export


def import_run(source: Path, output: Path, fresh_heads: tuple[str, ...] = (), tensorflow: bool = False) -> float:
    """Writes a run folder from a model in Hugging Face's format or TensorFlow's; returns the largest difference of logits.

    Args:
      source: a folder with config.json, safetensors and the tokenizer's files.
      output: the new run folder; its config.json is written last.
      fresh_heads: heads to add if the source does not hold them; an encoder without any head gets an MLM head.
      tensorflow: the source is the prefix of a checkpoint's files, as `tensorflow1.read_release` reads them.

    Raises:
      UserError: the output exists, the source is not supported or damaged, or the run computes something else.
    """
    check_new(output)
    config, tensors = tensorflow1.read_release(source) if tensorflow else (None, None)
    folder = source.parent if tensorflow else source
    original = huggingface.inspect(folder, fresh_heads, config, tensors)
    if not original.heads:
        original = huggingface.inspect(folder, ("mlm",), config, tensors)
    tokenizer = Tokenizer.load(folder)
    check_vocabulary(tokenizer, original.model.config, folder)
    warn_of_padding(original.model.config, tokenizer)
    if (rows := original.model.config.vocab_size) > tokenizer.vocab_size:
        logger.info("the embedding has %d rows for %d tokens; all are kept", rows, tokenizer.vocab_size)
    for name in original.fresh:
        logger.info("head %s is not in %s and starts from random weights", name, source)
    values = to_dict(run_config(original))
    encoder = LoadedEncoder(original.model, huggingface.load_params(original), original.labels, tokenizer)
    with claimed(output):  # only after everything has been read
        save_tokenizer(tokenizer, output)
        is_regression = "classification" in original.heads and original.problem == "regression"
        if original.labels and ("token" in original.heads or not is_regression):
            write_json(output / LABELS, original.labels)
        if original.fresh:
            write_json(output / FRESH_HEADS, original.fresh)

        store = CheckpointStore(output, CheckpointConfig(), in_background=False)
        store.save(0, {"params": encoder.params}, values, {})
        store.wait()
        inputs = probe_inputs(encoder)
        expected = probe(encoder, inputs)
        del encoder  # keep one copy in memory
        difference = compare(expected, probe(load_run(output, values), inputs), f"{output}: the written run")
        hf_config = original.config | ({"id2label": dict(enumerate(original.labels))} if original.labels else {})
        stored_heads = set(original.heads) - set(original.fresh)
        difference = max(difference, compare_with_transformers(folder, hf_config, inputs, expected, stored_heads))
        write_config(output, values)
        return difference


def run_config(original: ModelFolder) -> Any:
    """Returns the config of a task that an imported model can be used for."""
    model, trained = original.model.config, set(original.heads) - set(original.fresh)
    one_step = TrainConfig(num_steps=1)  # with 0 steps they would be counted from a training file
    if "classification" in original.heads:
        data = text.DataConfig(sequence_length=min(128, model.max_positions))
        return text.Config(model=model, data=data, problem=original.problem, train=one_step)
    if "token" in trained:
        length = min(tokens.DataConfig().sequence_length, model.max_positions)
        return tokens.Config(model=model, data=tokens.DataConfig(sequence_length=length), train=one_step)
    if "qa" in trained:
        return qa.Config(model=model, data=windows_for(model.max_positions), train=one_step)
    if names := tuple(name for name in original.heads if name in available() and name != "rtd"):  # without a generator
        windows = DataConfig(sequence_length=min(512, model.max_positions))
        return pretraining.Config(model=model, objectives=names, data=windows)
    return imported.Config(model=model)


def windows_for(max_positions: int) -> qa.DataConfig:
    """Returns the default sizes of question answering, scaled down in proportion if the model has too few positions."""
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
    """Exports a run to a folder that transformers can load; returns the largest difference of logits.

    The generator of a run with the objective rtd goes to the folder `GENERATOR` in it.

    Args:
      workdir: the run folder.
      output: the new folder; its config.json is written last.
      step: of the checkpoint; None for the default checkpoint.
      wanted_heads: heads to export; None for all trained heads that one class of transformers holds, and the generator.

    Raises:
      UserError: the output exists, the run lacks a head, no class or family of transformers holds the model, or the
        exported model computes something else.
    """
    check_new(output)
    encoder, generator = without_generator(workdir, in_float32(load(workdir, step)))
    tokenizer = encoder.tokenizer
    assert tokenizer is not None, "every run folder has a tokenizer"
    family, _ = huggingface_config.family_of(encoder.model.config)
    classes = exported_class(workdir, encoder.model, family, wanted_heads)
    with claimed(output):
        written = {}
        if generator is not None and wanted_heads is None:
            (output / GENERATOR).mkdir()
            of_generator = exported_class(workdir, generator.model, family, None)
            written[output / GENERATOR] = write_model(workdir, generator, output / GENERATOR, *of_generator)
        written[output] = write_model(workdir, encoder, output, *classes)
        del encoder, generator  # before they are read again
        return max(check_written(folder, tokenizer, of_folder) for folder, of_folder in written.items())


class Written(NamedTuple):
    """A model that has been written but for its config.json, and what it computes."""

    config: dict[str, Any]  # the contents of config.json
    heads: tuple[str, ...]
    inputs: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]  # logits by head, and 'hidden'


def write_model(
    workdir: Path, encoder: LoadedEncoder, output: Path, architecture: str, heads: tuple[str, ...]
) -> Written:
    """Writes an encoder with the heads of a class of transformers to a folder."""
    assert encoder.tokenizer is not None, "every run folder has a tokenizer"
    family, config = huggingface_config.family_of(encoder.model.config)
    config |= export_config(workdir, encoder, config, architecture, heads)
    encoder.tokenizer.save(output, max_length=encoder.model.config.max_positions)
    shapes = huggingface.exported_shapes(encoder.model, family, heads)
    tensors = huggingface.exported_tensors(encoder.model, encoder.params, family, heads)
    write_safetensors(output / WEIGHTS, shapes, tensors)
    num_parameters = sum(map(math.prod, shapes.values()))
    write_text(output / "README.md", model_card(workdir, encoder, architecture, num_parameters))
    inputs = probe_inputs(encoder)
    expected = {name: logits for name, logits in probe(encoder, inputs).items() if name in (*heads, "hidden")}
    return Written(config, heads, inputs, expected)


def check_written(output: Path, tokenizer: Tokenizer, written: Written) -> float:
    """Writes config.json if the model computes what it should; returns the largest difference of logits."""
    config, heads, inputs, expected = written
    folder = huggingface.inspect(output, config=config)
    reloaded = LoadedEncoder(folder.model, huggingface.load_params(folder), folder.labels, tokenizer)
    difference = max(
        compare(expected, probe(reloaded, inputs), f"{output}: the exported model"),
        compare_with_transformers(output, config, inputs, expected, set(heads)),
    )
    write_json(output / huggingface_config.CONFIG, config)
    return difference


def without_generator(workdir: Path, encoder: LoadedEncoder) -> tuple[LoadedEncoder, LoadedEncoder | None]:
    """Returns the encoder of a run without the generator of rtd, and the generator, if there is one, as an encoder."""
    if GENERATOR not in encoder.model.heads:
        return encoder, None
    options = from_dict(rtd.Options(), read_config(workdir)["options"]["rtd"], "config.options.rtd")
    model = rtd.generator_model(options, encoder.model)
    generator = LoadedEncoder(model, rtd.generator_params(options, encoder.params), [], encoder.tokenizer)
    heads = {name: make for name, make in encoder.model.heads.items() if name != GENERATOR}
    params = encoder.params | {"heads": {name: encoder.params["heads"][name] for name in heads}}
    return dataclasses.replace(encoder, model=Model.build(encoder.model.config, heads), params=params), generator


def export_config(
    workdir: Path, encoder: LoadedEncoder, config: dict[str, Any], architecture: str, heads: tuple[str, ...]
) -> dict[str, Any]:
    """Returns the entries of config.json that are not options of the encoder: class, tokens, labels."""
    tokenizer = encoder.tokenizer
    assert tokenizer is not None, "every run folder has a tokenizer"
    values: dict[str, Any] = {
        "architectures": [architecture],
        "pad_token_id": config.get("pad_token_id", tokenizer.pad_id),  # RoBERTa counts positions from it
        **dict.fromkeys(("bos_token_id", "cls_token_id"), tokenizer.cls_id),
        **dict.fromkeys(("eos_token_id", "sep_token_id"), tokenizer.sep_id),
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    if "classification" in heads:
        default = "classification" if encoder.labels else "regression"  # GLUE tasks have no option for it
        values["problem_type"] = huggingface_config.PROBLEM_TYPES[read_config(workdir).get("problem", default)]
    for name in heads:
        if HEADS[name].has_classes:
            num_classes = encoder.model.abstract["heads"][name]["dense"]["bias"].shape[0]
            labels = encoder.labels or [f"LABEL_{number}" for number in range(num_classes)]  # regression has no names
            values["id2label"] = {str(number): label for number, label in enumerate(labels)}
            values["label2id"] = {label: number for number, label in enumerate(labels)}
    return values


def exported_class(
    workdir: Path, model: Model, family: Family, wanted: tuple[str, ...] | None
) -> tuple[str, tuple[str, ...]]:
    """Returns the class of transformers for an export, and its heads. Raises UserError if no class has all wanted heads."""
    untrained = read_value(workdir, FRESH_HEADS, [])
    if unknown := [name for name in wanted or () if name not in model.heads]:
        raise UserError(f"{workdir}: has no head {unknown[0]}, only {', '.join(model.heads)}")
    candidates = tuple(name for name in model.heads if name not in untrained) if wanted is None else wanted
    architecture, heads = huggingface_config.architecture_of(family, candidates)
    if wanted and set(heads) != set(wanted):
        raise UserError(f"heads {', '.join(wanted)}: no class of {family.model_type} has all of them; choose fewer")
    for name in set(model.heads) - set(heads) if wanted is None else ():
        reason = "it was never trained" if name in untrained else f"{architecture} does not have it"
        logger.info("head %s is not exported: %s", name, reason)
    if model.config.pooler and not huggingface_config.class_has_pooler(model.config, heads):
        logger.info("the pooler is not exported: %s does not have one", architecture)
    return architecture, heads


def in_float32(encoder: LoadedEncoder) -> LoadedEncoder:
    """Returns the same encoder with parameters and computations in float32."""
    config = dataclasses.replace(encoder.model.config, dtype="float32", param_dtype="float32")
    params = jax.tree.map(lambda x: x.astype(np.float32), encoder.params)
    return dataclasses.replace(encoder, model=Model.build(config, encoder.model.heads), params=params)


def check_new(output: Path) -> None:
    """Raises UserError if a folder is not empty."""
    if output.exists() and (not output.is_dir() or any(path.name != LOCK for path in output.iterdir())):
        raise UserError(f"{output}: exists and is not empty; choose a new folder")


@contextlib.contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Creates a new folder and locks it. Raises UserError as `check_new`, and if another process holds the lock."""
    with locked(output, "wait for it, or choose another folder"):
        check_new(output)  # another process may have written it since
        yield
        (output / LOCK).unlink(missing_ok=True)  # a process that waits for it will see a folder that is not empty

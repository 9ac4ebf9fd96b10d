"""Folders in Hugging Face's format as a stranger might send them: sizes that do not fit, files elsewhere, damaged bytes."""

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import bert_jax
from bert_jax import conversion, run_folder
from bert_jax.checkpoint import huggingface
from bert_jax.data.tokenizer import Tokenizer
from tests.hostile import limits

CASES = ["bert/sequence_classification", "albert/masked_lm", "modernbert/masked_lm", "roberta/masked_lm"]
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
fuzz = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def copied(model_folder, tmp_path_factory) -> Callable[[str], Path]:
    """`copied(case)`: a golden model to be changed; the same folder each time."""
    sources: dict[str, Path] = {}
    place = tmp_path_factory.mktemp("hostile") / "model"

    def copy(case: str) -> Path:
        source = sources.setdefault(case, model_folder(case))
        shutil.rmtree(place, ignore_errors=True)
        return Path(shutil.copytree(source, place))

    return copy


def changed(folder: Path, **values: Any) -> Path:
    """Changes entries of config.json."""
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | values))
    return folder


@fuzz
@given(case=st.sampled_from(CASES), data=st.data())
def test_config_json(copied, case, data):
    folder = copied(case)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(data.draw(limits.mutated_json(config)))
    found = limits.accepted_or_refused(lambda: huggingface.look(folder))
    if found is not None:
        limits.accepted_or_refused(lambda: found.labels)
        limits.accepted_or_refused(lambda: conversion.run_config(found))


@fuzz
@given(data=st.data())
def test_damaged_bytes_of_safetensors(copied, data):
    folder = copied(CASES[0])
    path = folder / WEIGHTS
    path.write_bytes(data.draw(limits.damaged_bytes(path.read_bytes())))
    limits.accepted_or_refused(lambda: bert_jax.load(folder))


@fuzz
@given(data=st.data())
def test_damaged_header_of_safetensors(copied, data):
    folder = copied(CASES[0])
    content = (folder / WEIGHTS).read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = data.draw(limits.mutated_json(json.loads(content[8 : 8 + size]))).encode(errors="surrogatepass")
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])
    limits.accepted_or_refused(lambda: bert_jax.load(folder))


@fuzz
@given(data=st.data())
def test_index_json(copied, data):
    folder = copied(CASES[0])
    names = list(load_file(folder / WEIGHTS))
    (folder / WEIGHTS).rename(folder / "a.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "a.safetensors")}
    (folder / INDEX).write_text(data.draw(limits.mutated_json(index)))
    limits.accepted_or_refused(lambda: bert_jax.load(folder))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "config.json"])
def test_an_index_that_leads_elsewhere(copied, name):
    folder = copied(CASES[0])
    shutil.copy(folder / WEIGHTS, folder.parent)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": name}}))
    with limits.refused(INDEX, "is not the name of a .safetensors file"):
        bert_jax.load(folder)


def test_a_tensor_in_two_files(copied):
    folder = copied(CASES[0])
    tensors = load_file(folder / WEIGHTS)
    first = next(iter(tensors))
    save_file({first: tensors[first] + 1}, folder / "b.safetensors")
    (folder / WEIGHTS).rename(folder / "a.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    with limits.refused(first, "in two of the files"):
        bert_jax.load(folder)


SIZES = [
    *(("bert/base", name, value) for name in ("num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size",
      "max_position_embeddings", "type_vocab_size", "num_attention_heads") for value in (10**9, 10_000, 0, -1, 10**30)),
    *(("albert/masked_lm", name, value) for name in ("num_hidden_groups", "inner_group_num", "embedding_size")
      for value in (10**9, 0, -1)),
    *(("modernbert/masked_lm", name, value) for name in ("local_attention",)
      for value in (-1, 10**30)),
    ("modernbert/masked_lm", "num_hidden_layers", 10**9),
    *(("bert/base", "layer_norm_eps", value) for value in (-1, 0, 1e300)),
    *(("bert/base", "hidden_dropout_prob", value) for value in (7, -0.1, 1)),
]  # fmt: skip


@pytest.mark.parametrize("case, name, value", SIZES)
def test_sizes_are_compared_before_anything_is_built(copied, case, name, value):
    folder = changed(copied(case), **{name: value})
    start = time.process_time()
    with limits.refused():
        huggingface.look(folder)
    assert time.process_time() - start < 5  # seconds; what is built for 1e9 layers takes hours


def test_layer_types_of_another_number_of_layers(copied):
    with limits.refused("layer_types"):
        huggingface.look(
            changed(copied("modernbert/masked_lm"), layer_types=["full_attention"], num_hidden_layers=10**9)
        )


LOAD = "import sys, bert_jax; from bert_jax import cli; path = sys.argv.pop(); cli.run(lambda: bert_jax.load(path))"


def test_many_tensors(copied):
    """1e5 names that do not belong to the model, in seconds."""
    folder = copied(CASES[0])
    tensors = load_file(folder / WEIGHTS) | {f"extra.{number}": np.zeros(1, np.float32) for number in range(100_000)}
    save_file(tensors, folder / WEIGHTS)
    ended = limits.limited(limits.python(LOAD, folder), megabytes=3000, seconds=25)
    limits.assert_refused(ended, "unknown", "more")


def test_many_classes(copied):
    names = {str(number): f"label {number}" for number in range(500_000)}
    with limits.refused("id2label"):
        bert_jax.load(changed(copied(CASES[0]), id2label=names)).labels  # noqa: B018


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, INDEX])
def test_pipes_devices_and_folders(copied, name):
    for make in (os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")):
        folder = copied(CASES[0])
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        with limits.refused(name):
            bert_jax.load(folder)


def test_terminal_escapes_in_names(copied):
    folder = copied(CASES[0])
    save_file(
        load_file(folder / WEIGHTS) | {"\x1b[2J\x1b]0;title\x07" + "x" * 100_000: np.zeros(1, np.float32)},
        folder / WEIGHTS,
    )
    with limits.refused("\\x1b[2J"):
        bert_jax.load(folder)


def test_another_tokenizer_in_a_run(tiny_bert, tmp_path):
    run = Path(shutil.copytree(tiny_bert, tmp_path / "run"))
    assert bert_jax.load(run).tokenizer is not None
    shutil.rmtree(run / run_folder.TOKENIZER)
    Tokenizer.train(["the old river and a quiet ship", "a ship on the river was old"][::-1] * 3, 50).save(
        run / "tokenizer"
    )
    with limits.refused("tokenizer", "not the tokenizer that the run was trained with"):
        bert_jax.load(run)
    (run / run_folder.FINGERPRINT).unlink()  # a run of an older version, which does not tell
    assert bert_jax.load(run).tokenizer is not None

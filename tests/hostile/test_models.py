"""Model folders as a stranger might send them: options of other types and sizes, damaged tensors, files elsewhere."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import bert_jax
from bert_jax.conversion import convert as conversion
from bert_jax.conversion.parity import known_options
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.formats import huggingface
from bert_jax.formats.tensorflow1 import read_release
from bert_jax.formats.tensors import INDEX, WEIGHTS, Tensors
from tests.conftest import ROOT
from tests.hostile.limits import (
    accepted_or_refused,
    assert_refused,
    damaged_bytes,
    limited,
    mutated_json,
    python,
    refused,
)

GOLDEN = ROOT / "tests" / "golden"
CASES = [
    *("bert/pretraining", "roberta/token_classification", "albert/sequence_classification"),
    *("distilbert/question_answering", "electra/pretraining", "modernbert/masked_lm"),
]
WORDS = "bert.embeddings.word_embeddings.weight"


@pytest.fixture
def folder(tmp_path) -> Path:
    return copied("bert/masked_lm", tmp_path)


def copied(case: str, parent: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / case, parent / "model"))


def read(path: Path) -> None:
    found = huggingface.inspect(path)
    assert found.labels is not None
    huggingface.load_params(found)


def changed(path: Path, **options: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


# ----------------------------------------------------------------------------------------------------------------------
# Any damage
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_config_of_another_form(case, tmp_path_factory, data):
    path = copied(case, tmp_path_factory.mktemp("fuzz"))
    before = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(data.draw(mutated_json(before), "config.json"))
    accepted_or_refused(lambda: huggingface.inspect(path, ("classification",)).labels)
    accepted_or_refused(
        lambda: huggingface.inspect(path).problem if "classification" in huggingface.inspect(path).heads else 0
    )
    shutil.rmtree(path.parent)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_index_of_another_form(tmp_path_factory, data):
    path = copied("bert/base", tmp_path_factory.mktemp("fuzz"))
    names = list(load_file(path / WEIGHTS))
    (path / INDEX).write_text(data.draw(mutated_json({"weight_map": dict.fromkeys(names, WEIGHTS), "metadata": {}})))
    accepted_or_refused(lambda: Tensors.open(path))
    shutil.rmtree(path.parent)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_header_of_another_form(tmp_path_factory, data):
    path = copied("bert/base", tmp_path_factory.mktemp("fuzz"))
    content = (path / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    text = data.draw(mutated_json(json.loads(content[8:end]))).encode()
    (path / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
    accepted_or_refused(lambda: read(path))
    shutil.rmtree(path.parent)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_of_weights(tmp_path_factory, data):
    path = copied("bert/base", tmp_path_factory.mktemp("fuzz"))
    content = (path / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    if data.draw(st.booleans(), "in the header"):
        content = data.draw(damaged_bytes(content[:end])) + content[end:]
    else:
        content = data.draw(damaged_bytes(content))
    (path / WEIGHTS).write_bytes(content)
    accepted_or_refused(lambda: read(path))
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, INDEX, "pytorch_model.bin"])
@pytest.mark.parametrize("what", ["pipe", "folder", "device"])
def test_what_is_no_regular_file(name, what, folder):
    for other in {name, WEIGHTS} if name == "pytorch_model.bin" else {name}:
        (folder / other).unlink(missing_ok=True)
    make = {"pipe": os.mkfifo, "folder": Path.mkdir, "device": lambda path: path.symlink_to("/dev/zero")}
    make[what](folder / name)
    with refused(str(folder / name), "a folder" if what == "folder" else "not a regular file"):
        bert_jax.load(folder)


# ----------------------------------------------------------------------------------------------------------------------
# Options
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case, option, value, message",
    [
        (
            "bert/masked_lm",
            "num_hidden_layers",
            10**9,
            "num_hidden_layers=1000000000 in config.json is not from 1 to 1,024",
        ),
        ("albert/masked_lm", "num_hidden_layers", 10**9, "is not from 1 to 1,024"),
        ("modernbert/masked_lm", "num_hidden_layers", 10**9, "layer_types in config.json names 4 layers, not"),
        ("bert/masked_lm", "num_hidden_layers", 1000, "missing bert.encoder.layer.3."),
        ("bert/masked_lm", "hidden_size", 12 * 10**6, "instead of (53, 12000000)"),
        ("bert/masked_lm", "intermediate_size", 10**7, "instead of (12, 10000000)"),
        ("bert/masked_lm", "max_position_embeddings", 10**6, "instead of (1000000, 12)"),
        ("bert/masked_lm", "type_vocab_size", 10**7, "instead of (10000000, 12)"),
        ("bert/masked_lm", "hidden_size", 10**9, "hidden_size=1000000000 in config.json is not from 1 to 16,777,216"),
        ("bert/masked_lm", "vocab_size", 10**30, "is not from 1 to 16,777,216"),
        ("bert/masked_lm", "num_attention_heads", 0, "num_attention_heads=0 in config.json is not from 1 to 1,024"),
        ("bert/masked_lm", "layer_norm_eps", -1, "layer_norm_eps=-1 in config.json is not from 1e-30 to 1.0"),
        ("albert/masked_lm", "num_hidden_groups", -1, "num_hidden_groups=-1"),
        ("albert/masked_lm", "inner_group_num", 0, "inner_group_num=0"),
        ("roberta/masked_lm", "pad_token_id", -7, "position_offset=-6"),
        ("modernbert/masked_lm", "global_attn_every_n_layers", 0, "global_attention_every=0"),
        ("modernbert/masked_lm", "layer_types", ["full_attention"], "names 1 layers, not"),
        ("bert/masked_lm", "architectures", [["BertModel"]], "Expected `str`, got `array`"),
        ("bert/masked_lm", "id2label", 5, "Expected `object | null`, got `int`"),
        (
            "bert/masked_lm",
            "id2label",
            {str(i): "x" for i in range(100_000)},
            "names 100,000 classes, more than 65,536",
        ),
    ],
)
def test_options_are_compared_before_anything_is_built(case, option, value, message, tmp_path):
    path = copied(case, tmp_path)
    no_types = {"layer_types": None} if option.startswith("global") else {}
    changed(path / "config.json", **no_types, **{option: value})
    with refused(str(path), message):
        huggingface.inspect(path, ("token",))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "1" * 5000])
def test_numbers_that_json_does_not_have(number, folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("{", f'{{"classifier_dropout": {number}, ', 1))
    if number.isdigit():  # it is a number, of an option that means nothing here
        accepted_or_refused(lambda: huggingface.inspect(folder))
        return
    with refused(f"{folder / 'config.json'}: damaged, or not what is expected", "get the folder again"):
        huggingface.inspect(folder)


def test_only_known_options_reach_transformers():
    config = json.loads((GOLDEN / "bert/masked_lm/config.json").read_text())
    strange = {
        "attn_implementation": "stranger/kernel",
        "_attn_implementation": "stranger/kernel",
        "quantization_config": {"quant_method": "bitsandbytes"},
        "auto_map": {"AutoModel": "code.py"},
        "name_or_path": "stranger/model",
        "dtype": "float16",
        "__class__": 1,
    }
    known = known_options(config | strange)
    assert known.keys().isdisjoint(strange)
    assert known.keys() >= {"model_type", "vocab_size", "hidden_size", "hidden_act", "num_hidden_layers"}


def test_transformers_is_given_a_strangers_config(torch, transformers, model_folder, tmp_path, caplog):
    path = model_folder("bert/masked_lm")
    changed(
        path / "config.json",
        attn_implementation="stranger/kernel",
        quantization_config={"quant_method": "none of them"},
        auto_map={"AutoModelForMaskedLM": "stranger--code.py"},
    )
    assert conversion.import_run(path, tmp_path / "run") < 1e-4
    assert "not compared" not in caplog.text


# ----------------------------------------------------------------------------------------------------------------------
# Tensors
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", "", ".."])
def test_an_index_names_files_next_to_it_only(name, folder):
    shutil.copy(folder / WEIGHTS, folder.parent / "other.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(load_file(folder / WEIGHTS), name)}))
    with refused(str(folder / INDEX), "invalid file name"):
        Tensors.open(folder)


@pytest.mark.parametrize("change", ["lacks", "adds"])
def test_an_index_that_differs_from_its_files(change, folder):
    names = [*load_file(folder / WEIGHTS), "more"] if change == "adds" else list(load_file(folder / WEIGHTS))[1:]
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, WEIGHTS)}))
    with refused(str(folder / INDEX), f"differs from {WEIGHTS} in the tensors"):
        Tensors.open(folder)


def write_header(path: Path, text: bytes, numbers: bytes = b"", size: int | None = None) -> None:
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + numbers)


ENTRY = b'"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'


@pytest.mark.parametrize(
    "header, size",
    [
        (b"{", 2**63),
        (b"{" + ENTRY + b"}", 10**6),
        (b"{" + ENTRY + b"}" + b" " * (1 << 25), None),
        (b'{"a": {"dtype": "F32", "shape": [4294967296, 4294967296, 4294967296], "data_offsets": [0, 4]}}', None),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', None),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', None),
        (b"{" + ENTRY + b", " + ENTRY.replace(b"[1]", b"[1000000]") + b"}", None),
        (b"{" + ENTRY + b", " + ENTRY.replace(b'"a"', b'"b"') + b"}", None),
        (b'{"a": 5}', None),
        (b"[" * 100_000, None),
    ],
    ids=["size", "end", "long", "overflow", "negative", "backwards", "twice", "overlap", "number", "nested"],
)
def test_headers_that_lie(header, size, folder):
    write_header(folder / WEIGHTS, header, b"\0\0\0\0", size)
    with refused(str(folder / WEIGHTS)):
        Tensors.open(folder).read("a")


def test_two_names_of_one_tensor(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["bert.embeddings.LayerNorm.gamma"] = tensors["bert.embeddings.LayerNorm.weight"]
    save_file(tensors, folder / WEIGHTS)
    with refused("bert.embeddings.LayerNorm.gamma", "several names of the same tensor"):
        huggingface.inspect(folder)


@pytest.mark.parametrize("shape", [(), (0, 12), (7, 0), (2, 3, 4)])
def test_heads_of_odd_shapes(shape, folder):
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {"classifier.weight": np.zeros(shape, np.float32)}, folder / WEIGHTS)
    with refused(str(folder), "classifier"):
        huggingface.inspect(folder)


def test_names_are_escaped(folder):
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {"\x1b[31mred\n" + "x" * 10**6: np.zeros(2, np.float32)}, folder / WEIGHTS)
    with refused("unknown \\x1b[31mred"):
        huggingface.inspect(folder)


MANY = """
import json, sys
from pathlib import Path
from bert_jax.cli import main as cli
from bert_jax.formats import huggingface
cli.run_command(lambda: huggingface.inspect(Path(FOLDER)))
"""


def test_many_tensors_take_linear_time(folder):
    path = folder / WEIGHTS
    names = [*load_file(path)]
    layers = [f"bert.encoder.layer.{number}.output.LayerNorm.bias" for number in range(3, 100_000)]
    entries = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * place, 4 * place + 4]}
        for place, name in enumerate([*names, *layers])
    }
    shape = [53, 12]
    entries[WORDS] = {
        "dtype": "F32",
        "shape": shape,
        "data_offsets": [4 * len(entries), 4 * len(entries) + 4 * 53 * 12],
    }
    place = names.index(WORDS)
    entries["filler"] = {"dtype": "F32", "shape": [1], "data_offsets": [4 * place, 4 * place + 4]}
    write_header(path, json.dumps(entries).encode(), b"\0" * 4 * (len(entries) + 53 * 12 - 1))
    ended = limited(python(MANY.replace("FOLDER", repr(str(folder)))), megabytes=2500, seconds=25)
    assert_refused(ended, "tensors with other shapes")


# ----------------------------------------------------------------------------------------------------------------------
# Other files
# ----------------------------------------------------------------------------------------------------------------------


def test_a_run_whose_tokenizer_was_replaced(tiny_bert, tmp_path):
    run = Path(shutil.copytree(tiny_bert, tmp_path / "run"))
    bert_jax.load(run)
    shutil.rmtree(run / "tokenizer")
    Tokenizer.train(["quite other words, and a zebra"] * 3, 53).save(run / "tokenizer")
    with refused(str(run / "tokenizer"), "not the tokenizer of this run", "tokenizer_fingerprint.json"):
        bert_jax.load(run)
    with refused("not the tokenizer of this run"):
        conversion.export_run(run, tmp_path / "exported")
    (run / "tokenizer_fingerprint.json").unlink()  # as in older runs
    assert bert_jax.load(run).tokenizer is not None


@pytest.mark.parametrize("content", ["5", "[]", "{", '{"a": 1}'])
def test_a_damaged_fingerprint(content, tiny_bert, tmp_path):
    run = Path(shutil.copytree(tiny_bert, tmp_path / "run"))
    (run / "tokenizer_fingerprint.json").write_text(content)
    with refused(str(run / "tokenizer_fingerprint.json"), "restore it"):
        bert_jax.load(run)


def test_a_released_checkpoint_of_pipes(tensorflow, tmp_path):
    (tmp_path / "bert_config.json").write_text("{}")
    os.mkfifo(tmp_path / "bert_model.ckpt.index")
    with refused("bert_model.ckpt.index: not a regular file"):
        read_release(tmp_path / "bert_model.ckpt")

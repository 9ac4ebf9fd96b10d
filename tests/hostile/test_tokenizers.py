"""Tokenizers as a stranger might send them: fields of other types, damaged bytes, rules that ask for much or panic."""

import base64
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.tokenizer import limits as tokenizer_limits
from bert_jax.data.tokenizer.tokenizer import KINDS, Tokenizer
from bert_jax.errors import UserError
from tests.hostile.limits import (
    accepted_or_refused,
    assert_refused,
    damaged_bytes,
    limited,
    mutated_json,
    python,
    refused,
)

TEXTS = ["The old river and a quiet ship.", "don't ``quote'' \u00e9\u4e2d\U0001f600 [SEP] <mask>", "", "a" * 70 + "b"]
ENGINE, CONFIG, SPECIALS = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A folder of each kind, with a token that was added."""
    made = {}
    for kind in KINDS:
        made[kind] = tmp_path_factory.mktemp("tokenizers") / kind
        Tokenizer.train([*TEXTS[:2]] * 4, 400, kind=kind).save(made[kind])
        spec = json.loads((made[kind] / ENGINE).read_text())
        spec["added_tokens"].append(
            spec["added_tokens"][-1] | {"content": "covid", "id": _size(spec), "special": False}
        )
        (made[kind] / ENGINE).write_text(json.dumps(spec))
        Tokenizer.load(made[kind]).save(made[kind])  # with all the files that name the token
    return made


def _size(spec: dict[str, Any]) -> int:
    vocabulary = spec["model"]["vocab"]
    return max(len(vocabulary), 1 + max(token["id"] for token in spec["added_tokens"]))


@pytest.fixture
def folder(folders, tmp_path) -> Path:
    return Path(shutil.copytree(folders["wordpiece"], tmp_path / "tokenizer"))


def use(path: Path) -> None:
    """Loads a tokenizer and does with it what the project does."""
    tokenizer = Tokenizer.load(path)
    for ids in tokenizer.encode(TEXTS):
        assert ids.dtype == np.int32 and ((ids >= 0) & (ids < tokenizer.vocab_size)).all()
        tokenizer.decode(ids)
    tokenizer.encode_with_offsets(TEXTS)
    assert len(tokenizer.word_starts) == tokenizer.vocab_size and len(tokenizer.fingerprint) == 16
    tokenizer.save(path.parent / "saved")


def changed(path: Path, **entries: Any) -> None:
    """Replaces entries of a JSON file; one named model is merged."""
    spec = json.loads(path.read_text())
    model = spec.get("model", {}) | entries.pop("model", {})
    path.write_text(json.dumps(spec | entries | ({"model": model} if model else {})))


# ----------------------------------------------------------------------------------------------------------------------
# Any damage
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [ENGINE, CONFIG, SPECIALS, "added_tokens.json", "vocab.json", "config.json"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_json_of_another_form(kind, name, folders, tmp_path_factory, data):
    path = Path(shutil.copytree(folders[kind], tmp_path_factory.mktemp("fuzz") / "tokenizer"))
    if name not in (ENGINE, CONFIG, SPECIALS) or data.draw(st.booleans(), "without tokenizer.json"):
        (path / ENGINE).unlink(missing_ok=name != ENGINE)
    before = {
        "added_tokens.json": {"covid": 7, "<x>": 8},
        "config.json": {"tokenizer_class": "BertTokenizerFast", "model_type": "bert"},
        "vocab.json": {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "a": 5},
    }.get(name) or json.loads((folders[kind] / name).read_text())
    (path / name).write_text(data.draw(mutated_json(before), "text"))
    accepted_or_refused(lambda: use(path))
    shutil.rmtree(path.parent)


@pytest.mark.parametrize(
    "kind, name",
    [
        ("unigram", "spiece.model"),
        ("unigram", ENGINE),
        ("wordpiece", "vocab.txt"),
        ("bpe", "merges.txt"),
        ("bpe", ENGINE),
    ],
)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_bytes(kind, name, folders, tmp_path_factory, data):
    path = Path(shutil.copytree(folders[kind], tmp_path_factory.mktemp("fuzz") / "tokenizer"))
    if name != ENGINE:
        (path / ENGINE).unlink()
    (path / name).write_bytes(data.draw(damaged_bytes((folders[kind] / name).read_bytes()), "bytes"))
    accepted_or_refused(lambda: use(path))
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("name", [ENGINE, CONFIG, SPECIALS, "added_tokens.json", "config.json"])
@pytest.mark.parametrize("what", ["pipe", "folder", "device"])
def test_what_is_no_regular_file(name, what, folder):
    (folder / name).unlink(missing_ok=True)
    make = {"pipe": os.mkfifo, "folder": Path.mkdir, "device": lambda path: path.symlink_to("/dev/zero")}
    make[what](folder / name)
    with refused(str(folder / name), "a folder" if what == "folder" else "not a regular file"):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    "name, entries",
    [
        (CONFIG, {"model_input_names": 5}),
        (CONFIG, {"added_tokens_decoder": []}),
        (CONFIG, {"added_tokens_decoder": {"9" * 5000: {"content": "x"}}}),
        (CONFIG, {"added_tokens_decoder": {"5": {}}}),
        (CONFIG, {"tokenizer_class": ["BertTokenizer"]}),
        (CONFIG, {"mask_token": 5}),
        (SPECIALS, {"additional_special_tokens": [[]]}),
    ],
)
def test_settings_of_other_types(name, entries, folder):
    changed(folder / name, **entries)
    with refused(f"{folder / name}: invalid contents", "copy or train it again"):
        Tokenizer.load(folder)


def test_line_ends_of_windows_are_no_part_of_the_tokens(folder):
    before = Tokenizer.load(folder)
    (folder / ENGINE).unlink()
    (folder / CONFIG).unlink()
    (folder / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes().replace(b"\n", b"\r\n"))
    again = Tokenizer.load(folder)
    assert again.tokens(range(20)) == before.tokens(range(20))


# ----------------------------------------------------------------------------------------------------------------------
# Panics
# ----------------------------------------------------------------------------------------------------------------------


def regex(pattern: str, kind: str = "Split") -> dict[str, Any]:
    rule = {"behavior": "Isolated", "invert": False} if kind == "Split" else {"content": "x"}
    return {"type": kind, "pattern": {"Regex": pattern}} | rule


PANICS = {
    "regex to split at": {"pre_tokenizer": regex("(a+)+$")},
    "regex to replace": {"normalizer": regex("(a+)+$", "Replace")},
    "regex of spaces": {"normalizer": regex(r"(\s+)+$", "Replace")},
    "chunks of nothing": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "stripping decoder": {"decoder": {"type": "Strip", "content": "a", "start": 10**15, "stop": 10**15}},
    "charsmap that is cut off": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "charsmap that wants 4 GB": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/P///w=="}},
    "charsmap of one node": {
        "normalizer": {
            "type": "Precompiled",
            "precompiled_charsmap": base64.b64encode(b"\4\0\0\0\xff\xff\xff\0x\0").decode(),
        }
    },
    "no unknown token": {"model": {"type": "Unigram", "vocab": [[x, 0.0] for x in ("[PAD]", "a")], "unk_id": None}},
}


@pytest.mark.parametrize("name", PANICS)
def test_panics_are_one_line(name, folder, capfd):
    changed(folder / ENGINE, **json.loads(json.dumps(PANICS[name])))
    with refused(str(folder)):
        Tokenizer.load(folder)
    assert capfd.readouterr().err == ""  # where Rust prints them itself


def test_panics_of_the_engine_in_use_can_be_pickled(folder):
    """As when a worker process meets a text that none of the texts tried at the start is like."""
    changed(folder / ENGINE, pre_tokenizer=regex("(ship|shi+p)+(p+)+$"))
    tokenizer = Tokenizer.load(folder)
    with refused("tokenizer: its rules fail on a text", "retry-limit"):
        tokenizer.encode(["ship" + "p" * 60 + "b"])
    with pytest.raises(UserError) as caught:
        pickle.loads(pickle.dumps(tokenizer)).encode(["ship" + "p" * 60 + "b"])
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_what_others_print_meanwhile_is_kept(capfd):
    with tokenizer_limits.quiet_panics():
        os.write(2, b"a line\n")
    assert capfd.readouterr().err == "a line\n"
    with pytest.raises(KeyboardInterrupt), tokenizer_limits.engine_errors("x"), tokenizer_limits.quiet_panics():
        raise KeyboardInterrupt


# ----------------------------------------------------------------------------------------------------------------------
# Small files that ask for much
# ----------------------------------------------------------------------------------------------------------------------

LOAD = (
    "import sys; from bert_jax.cli import main as cli; from bert_jax.data.tokenizer.tokenizer import Tokenizer; "
    "cli.run_command(lambda: Tokenizer.load(FOLDER))"
)
NINE = {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}] * 9}
LONG = base64.b64encode((4).to_bytes(4, "little") + bytes(4) + b"x" * 10**6 + b"\0").decode()
BOMBS: dict[str, tuple[dict[str, Any], str]] = {
    "a long replacement": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": LONG}},
        "normalizer may make texts",
    ),
    "rules that multiply": ({"normalizer": NINE}, "normalizer may make texts 1e+09 times longer"),
    "rules that match nothing": (
        {"normalizer": {"type": "Sequence", "normalizers": [regex("x*", "Replace")] * 30}},
        "times longer",
    ),
    "decoders that multiply": (
        {"decoder": {"type": "Sequence", "decoders": NINE["normalizers"]}},
        "the decoder may make texts",
    ),
    "bytes of bytes": (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 34}},
        "times longer",
    ),
    "bytes of bytes, later": (
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": True}] * 34,
            }
        },
        "times longer",
    ),
    "many rules": (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 5000}},
        "rules, more than 64",
    ),
    "longest word": ({"model": {"max_input_chars_per_word": 10**15}}, "is not from 0 to 1000"),
    "prefix": ({"model": {"continuing_subword_prefix": "#" * 10**6}}, "has 1000000 characters"),
    "special tokens": (
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}] * 999
                + [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"],
                "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2] * 999, "tokens": ["[CLS]"] * 999}},
            }
        },
        "special tokens around a pair",
    ),
    "dropout": ({"model": {"type": "BPE", "merges": [], "dropout": 0.5}}, "dropout is random"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_rules_that_ask_for_much(name, folder):
    entries, message = BOMBS[name]
    changed(folder / ENGINE, **json.loads(json.dumps(entries)))
    with refused(str(folder), message):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    "number, message",
    [
        (4_000_000_000, "not a vocabulary"),
        (2_000_000_000, "'far' has the id 2000000000"),
        (100_000, "'far' has the id 100000"),
    ],
)
def test_ids_that_leave_gaps(number, message, folder):
    vocabulary = json.loads((folder / ENGINE).read_text())["model"]["vocab"]
    changed(folder / ENGINE, model={"vocab": vocabulary | {"far": number}})
    with refused(str(folder), message):
        Tokenizer.load(folder)


@pytest.mark.parametrize("name", [ENGINE, CONFIG])
def test_many_lists_take_little_memory(name, folder):
    (folder / name).write_bytes(b"[" + b"[]," * 20_000_000 + b"[]]")
    ended = limited(python(LOAD.replace("FOLDER", repr(str(folder)))), megabytes=1200, seconds=20)
    assert_refused(ended, str(folder / name), "more than")
    assert ended.megabytes < 700


def test_a_vocabulary_of_many_lines(folder):
    (folder / ENGINE).unlink()
    (folder / "vocab.txt").write_bytes(b"a\n" * 10_000_000)
    with refused(str(folder / "vocab.txt"), "lines, more than"):
        Tokenizer.load(folder)

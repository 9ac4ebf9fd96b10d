"""Tokenizer folders as a stranger might send them: damaged, contradictory, or with rules that ask for too much."""

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_jax.data.tokenizer import KINDS, Tokenizer
from tests.hostile import limits

TEXTS = ["The old river and a quiet ship, 1998.", "A ship on the river was old!", "quiet rivers; old ships"] * 4
VOCABULARIES = {"wordpiece": "vocab.txt", "bpe": "merges.txt", "unigram": "spiece.model"}
fuzz = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[[str], Path]:
    """`saved(kind)`: the folder of a small tokenizer. To be read only."""
    folders = {}
    for kind, size in zip(KINDS, (120, 300, 60), strict=True):
        folders[kind] = tmp_path_factory.mktemp(kind)
        Tokenizer.train(TEXTS, size, kind=kind).save(folders[kind])
    return folders.__getitem__


@pytest.fixture(scope="module")
def copied(saved, tmp_path_factory) -> Callable[..., Path]:
    """`copied(kind, without=())`: a copy to be changed; the same folder each time."""
    place = tmp_path_factory.mktemp("hostile") / "tokenizer"

    def copy(kind: str, without: tuple[str, ...] = ()) -> Path:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(saved(kind), place)
        for name in without:
            (place / name).unlink()
        return place

    return copy


def used(folder: Path) -> None:
    """Loads a tokenizer and does with it what the project does."""

    def use() -> None:
        tokenizer = Tokenizer.load(folder)
        ids = tokenizer.encode(["The old ship [MASK] é 漢", ""])[0]
        assert ids.max(initial=0) < tokenizer.vocab_size and ids.min(initial=0) >= 0
        tokenizer.decode(ids)
        assert len(tokenizer.tokens(ids)) == len(ids)
        assert len(tokenizer.word_starts) == tokenizer.vocab_size
        assert len(tokenizer.fingerprint) == 16

    limits.accepted_or_refused(use)


@fuzz
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_tokenizer_json(copied, kind, data):
    folder = copied(kind)
    spec = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(data.draw(mutated_rules(spec)))
    used(folder)


@st.composite
def mutated_rules(draw: st.DrawFn, spec: dict[str, Any]) -> str:
    """A tokenizer.json with changes mostly outside its long vocabulary."""
    if draw(st.booleans()):
        return draw(limits.mutated_json(spec))
    model = spec["model"]
    text = draw(limits.mutated_json(spec | {"model": model | {"vocab": "VOCAB", "merges": "MERGES"}}))
    return text.replace('"VOCAB"', json.dumps(model["vocab"])).replace('"MERGES"', json.dumps(model.get("merges", [])))


@fuzz
@given(kind=st.sampled_from(KINDS), with_engine=st.booleans(), data=st.data())
def test_settings(copied, kind, with_engine, data):
    folder = copied(kind, () if with_engine else ("tokenizer.json",))
    name = data.draw(
        st.sampled_from(["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json"])
    )
    decoder = {"7": {"content": "[NEW]", "special": True, "lstrip": False}}
    values = {
        "added_tokens.json": {"[NEW]": 500},
        "config.json": {"model_type": "bert", "tokenizer_class": "BertTokenizer"},
        "special_tokens_map.json": {
            "mask_token": {"content": "[MASK]", "lstrip": True},
            "additional_special_tokens": ["x"],
        },
    }
    valid = values.get(name) or json.loads((folder / name).read_text()) | {"added_tokens_decoder": decoder}
    (folder / name).write_text(data.draw(limits.mutated_json(valid)))
    used(folder)


@fuzz
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_damaged_vocabularies(copied, kind, data):
    folder = copied(kind, ("tokenizer.json",))
    path = folder / VOCABULARIES[kind]
    path.write_bytes(data.draw(limits.damaged_bytes(path.read_bytes())))
    used(folder)


@fuzz
@given(data=st.data())
def test_vocab_json(copied, data):
    folder = copied("bpe", ("tokenizer.json",))
    path = folder / "vocab.json"
    path.write_text(data.draw(limits.mutated_json(json.loads(path.read_text()))))
    used(folder)


@fuzz
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_damaged_bytes_of_tokenizer_json(copied, kind, data):
    folder = copied(kind)
    path = folder / "tokenizer.json"
    path.write_bytes(data.draw(limits.damaged_bytes(path.read_bytes())))
    used(folder)


# ----------------------------------------------------------------------------------------------------------------------
# Rules that ask for much, in a process with limits
# ----------------------------------------------------------------------------------------------------------------------

LOAD = """
import sys
from bert_jax import cli
from bert_jax.data.tokenizer import Tokenizer
sys.argv[1:] = []
folder, text = %r
cli.run(lambda: Tokenizer.load(folder).encode([text]))
"""


def replacing(rule: dict[str, Any], count: int) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [{"type": "Replace", **rule}] * count}


def charsmap(replacement: bytes) -> str:
    return base64.b64encode((4).to_bytes(4, "little") + bytes(4) + replacement + b"\0").decode()


BOMBS: dict[
    str, tuple[str, Any, str]
] = {  # name -> (entry of tokenizer.json, or of its model; value; part of the message)
    "growth": ("normalizer", replacing({"pattern": {"String": "a"}, "content": "a" * 10}, 9), "times as long"),
    "growth by a regex": ("normalizer", replacing({"pattern": {"Regex": "x*"}, "content": "xxx"}, 9), "times as long"),
    "growth of the empty text": ("normalizer", replacing({"pattern": {"String": ""}, "content": "xxx"}, 9), "times as"),
    "growth when decoded": (
        "decoder",
        {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}] * 9},
        "times as long",
    ),
    "a long replacement": (
        "normalizer",
        {"type": "Precompiled", "precompiled_charsmap": charsmap(b"x" * 1_000_000)},
        "replacement of 1,000,000 bytes",
    ),
    "a damaged map": ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}, "cannot encode"),
    "backtracking": (
        "pre_tokenizer",
        {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
        "cannot encode a text",
    ),
    "an invalid regex": (
        "pre_tokenizer",
        {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
        "unreadable tokenizer",
    ),
    "long words": ("max_input_chars_per_word", 10**15, "max_input_chars_per_word"),
    "a large id": (
        "vocab",
        {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "x": 4_000_000_000},
        "4,000,000,000",
    ),
    "no vocabulary": ("vocab", {}, "0 tokens"),
    "no unknown token": ("unk_token", "[NOT THERE]", "Missing [UNK] token"),
    "random pieces": ("dropout", 0.5, "dropout"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_rules_that_ask_for_much(copied, name):
    entry, value, message = BOMBS[name]
    folder = copied("wordpiece")
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    (spec["model"] if entry in ("max_input_chars_per_word", "vocab", "unk_token", "dropout") else spec)[entry] = value
    path.write_text(json.dumps(spec))
    ended = limits.limited(limits.python(LOAD % ((str(folder), "a" * 60 + "b"),)), megabytes=1500, seconds=20)
    assert ended.code == 2 and message in ended.stderr.splitlines()[-1], ended
    if (
        name != "backtracking"
    ):  # found by the text, not when it is loaded, and Rust tells of it in its own words as well
        limits.assert_refused(ended, message, str(folder))


def test_long_lists(copied):
    folder = copied("wordpiece")
    (folder / "tokenizer.json").write_text('{"model": [' + "[]," * 19_000_000 + "[]]}")
    ended = limits.limited(limits.python(LOAD % ((str(folder), "a"),)), megabytes=1000, seconds=20)
    limits.assert_refused(ended, "tokenizer.json", "lists and objects")


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"])
def test_pipes_devices_and_folders(copied, name):
    for make in (os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")):
        folder = copied("wordpiece", ("tokenizer.json",) if name == "vocab.txt" else ())
        (folder / name).unlink()
        make(folder / name)
        with limits.refused(name):
            Tokenizer.load(folder)


def test_large_files(copied):
    folder = copied("wordpiece", ("tokenizer.json",))
    with (folder / "vocab.txt").open("ab") as file:
        file.truncate(10**12)  # sparse
    with limits.refused("vocab.txt", "larger than"):
        Tokenizer.load(folder)


def test_windows_line_ends(copied):
    folder = copied("wordpiece", ("tokenizer.json",))
    before = Tokenizer.load(folder).fingerprint
    path = folder / "vocab.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert Tokenizer.load(folder).fingerprint == before

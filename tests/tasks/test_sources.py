"""Text in the place of a corpus: prepared once, as the tool prepares it, and again when a file changes."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from bert_jax.data.corpus.format import Corpus
from bert_jax.data.corpus.prepare import prepare
from bert_jax.data.sources.base import SOURCE_KINDS
from bert_jax.data.sources.documents import KINDS, read_documents
from bert_jax.errors import UserError
from bert_jax.run_folder.folder import read_config
from bert_jax.tasks.common.sources import cached_corpus, is_source, prepare_sources, stamps
from tests.running import ROOT, assert_one_line, command, config_flag
from tests.running import run as run_command


@pytest.fixture
def text(documents, tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(document.text for document in documents[:120]))
    return path


def tokens(folder: Path) -> list[np.ndarray]:
    corpus = Corpus.open(folder)
    return [corpus.tokens(np.array([n]), np.array([0]), int(size))[0] for n, size in enumerate(corpus.shard_tokens)]


def test_the_corpus_is_that_of_the_tool(home, text, tokenizer, tmp_path):
    source = f"text:{text}"
    folder = cached_corpus(source, tokenizer)
    assert folder.parent == home / ".cache" / "bert_jax" / "corpora" and folder.name.startswith("text-")
    prepare(read_documents(source), tokenizer, tmp_path / "corpus", source=source)
    for ours, theirs in zip(tokens(folder), tokens(tmp_path / "corpus"), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_it_is_kept_until_a_file_changes(home, text, tokenizer):
    source = f"text:{text}"
    folder = cached_corpus(source, tokenizer)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert cached_corpus(source, tokenizer) == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    os.utime(text, ns=(1, 1))
    assert cached_corpus(source, tokenizer) != folder
    assert len({*stamps("python-docs")}) > 20, "of the installed packages"


def test_too_few_documents_to_hold_any_out(home, tokenizer, tiny_config, tmp_path):
    (tmp_path / "text.txt").write_text("the old river\n\na quiet ship\n")
    tokenizer.save(tmp_path / "tokenizer")
    options = {"data.tokenizer": str(tmp_path / "tokenizer")}
    with tiny_config(**options).unlocked() as values:
        values.data.mixture = (f"0.3:text:{tmp_path}/text.txt",)
        prepare_sources(values, tmp_path / "run")  # what is only trained on needs none
        for option, value in (
            ("corpus", f"text:{tmp_path}/text.txt"),
            ("eval_corpora", (f"text:{tmp_path}/text.txt",)),
        ):
            with pytest.raises(UserError, match=r"text.txt: too few documents, so that none is held out"):
                values.data[option] = value
                prepare_sources(values, tmp_path / "run")


def test_the_kinds_are_those_that_are_read():
    assert tuple(KINDS) == SOURCE_KINDS


def test_what_is_a_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_source("text:x.txt") and is_source("parquet:a/*.parquet:body") and is_source("python-docs")
    assert not is_source("corpora/mine") and not is_source("C:corpus") and not is_source("")
    (tmp_path / "python-docs").mkdir()
    assert not is_source("python-docs"), "a folder"


def test_a_run_on_text(home, text, tokenizer, corpus_dir, tiny_config, tmp_path):
    """Trained on text mixed with text, stopped at its end, and evaluated; the run knows the folders alone."""
    tokenizer.save(tmp_path / "tokenizer")
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(f'{{"body": "{line}"}}' for line in ["the old river and a ship"] * 200))
    options = {
        "data.corpus": f"text:{text}",
        "data.mixture": (f"0.3:jsonl:{other}:body", f"0.1:{corpus_dir}"),
        "data.eval_corpora": (f"jsonl:{other}:body",),
        "data.tokenizer": str(tmp_path / "tokenizer"),
        "train.num_steps": 3,
    }
    flag = config_flag(tiny_config(objectives=("mlm",), **options), tmp_path / "config")
    shown = run_command([sys.executable, str(ROOT / "tools" / "inspect_batch.py"), flag, "--rows=1"]).stdout
    assert "masking: token" in shown, "a batch can be seen before the run"
    for _ in range(2):
        run_command(command("pretrain", flag, f"--workdir={tmp_path}/run"))
    data = read_config(tmp_path / "run")["data"]
    cache = str(home / ".cache" / "bert_jax" / "corpora")
    assert data["corpus"].startswith(f"{cache}/text-")
    assert data["mixture"][0].startswith(f"0.3:{cache}/jsonl-") and data["mixture"][1] == f"0.1:{corpus_dir}"
    assert data["eval_corpora"][0] == data["mixture"][0].removeprefix("0.3:")
    assert len(list(Path(cache).iterdir())) == 2


def test_the_tokenizer_is_that_of_the_start(home, text, tiny_bert, tiny_config, tmp_path):
    values = tiny_config(**{"data.corpus": f"text:{text}", "init_from": str(tiny_bert)})
    prepare_sources(values, tmp_path / "run")
    assert Corpus.open(values.data.corpus).num_documents > 100


@pytest.mark.parametrize(
    "corpus, message",
    [
        ("text:{folder}/none.txt", "none.txt: matches no file; use the path of a file or a glob pattern"),
        ("text:{folder}/text.txt", "is text, and there is no tokenizer for it; train one with"),
    ],
)
def test_mistakes_are_one_line(corpus, message, home, text, tokenizer, tiny_config, tmp_path):
    if "none" in corpus:
        tokenizer.save(tmp_path / "tokenizer")
    options = {
        "data.corpus": corpus.format(folder=tmp_path),
        "data.tokenizer": str(tmp_path / "tokenizer") * ("none" in corpus),
    }
    flag = config_flag(tiny_config(**options), tmp_path / "config")
    done = run_command(command("pretrain", flag, f"--workdir={tmp_path}/run"), code=2)
    assert_one_line(done.stderr, message)
    assert not (tmp_path / "run").exists()

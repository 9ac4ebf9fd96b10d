"""The two tools as a user runs them: real processes, one of them killed half-way."""

import bz2
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bert_jax.data.corpus.format import Corpus
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from tests import running
from tests.data.sources import tables
from tests.data.sources.test_wikipedia import dump, page

ROOT = Path(__file__).resolve().parents[2]


def command(tool: str, *flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / f"{tool}.py"), *flags]


def run(tool: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return running.run(command(tool, *flags), code=None)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Text for some dozen small shards, and a tokenizer trained on it by the tool."""
    folder = tmp_path_factory.mktemp("source")
    words = ["the", "small", "cat", "sat", "on", "a", "mat", "near", "שלום", "עולם", "and", "🙂", "said", "nothing"]
    documents = [" ".join(words[(i * j) % len(words)] for j in range(2_000)) + ". And then." for i in range(600)]
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    done = run(
        "train_tokenizer", f"--source=text:{folder}/text.txt", "--vocab_size=200", f"--output={folder}/tokenizer"
    )
    assert done.returncode == 0, done.stderr
    tokenizer = Tokenizer.load(folder / "tokenizer")
    assert f"{tokenizer.vocab_size} tokens, fingerprint {tokenizer.fingerprint}" in done.stdout
    assert "reading: 100% of the source, 600 documents" in done.stderr
    return folder


@pytest.mark.parametrize("kind, file", [("bpe", "merges.txt"), ("unigram", "spiece.model")])
def test_other_kinds_of_tokenizers(source, tmp_path, kind, file):
    name = f"--source=text:{source}/text.txt"
    done = run("train_tokenizer", name, "--vocab_size=270", f"--kind={kind}", f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert f"fingerprint {Tokenizer.load(tmp_path).fingerprint}" in done.stdout and (tmp_path / file).exists()
    assert "LOG(" not in done.stderr, "SentencePiece talks"


def test_a_tokenizer_replaces_no_other_files(source, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = run("train_tokenizer", f"--source=text:{source}/text.txt", "--vocab_size=200", f"--output={tmp_path}")
    assert done.returncode == 2 and f"--output={tmp_path}: holds other files; use a new folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def flags(source: Path, output: Path, *more: str) -> list[str]:
    name = f"--source=text:{source}/text.txt"
    return [name, f"--tokenizer={source}/tokenizer", f"--output={output}", "--shard_megabytes=0.2", *more]


def test_killed_and_resumed(source, tmp_path):
    done = run("prepare_corpus", *flags(source, tmp_path / "whole"))
    assert done.returncode == 0, done.stderr
    assert "600 documents (0 empty ones skipped)" in done.stdout and "Traceback" not in done.stderr

    output = tmp_path / "killed"
    with subprocess.Popen(
        command("prepare_corpus", *flags(source, output, "--workers=2")),
        env=running.environment(1),
        stderr=subprocess.PIPE,
    ) as tool:
        deadline = time.monotonic() + 60
        while len(list(output.glob("unfinished/*.array_record"))) < 3:
            assert time.monotonic() < deadline and tool.poll() is None
            time.sleep(0.005)
        os.kill(tool.pid, signal.SIGKILL)
    assert not (output / "corpus.json").exists() and (output / "unfinished").exists()

    resumed = run("prepare_corpus", *flags(source, output))
    assert resumed.returncode == 0, resumed.stderr
    assert contents(output) == contents(tmp_path / "whole")
    assert Corpus.open(output).num_documents + Corpus.open(output, "validation").num_documents == 600

    again = run("prepare_corpus", *flags(source, output))
    assert again.returncode == 0 and "already finished, 600 documents" in again.stdout


def test_cleaning(source, tmp_path):
    """What the flags drop is printed, and recorded with them in the corpus and its README.md."""
    texts = ["the small cat sat", "the small cat sat", "a mat", "on the mat near", "said nothing, lorem ipsum"]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    cleaning = ["--unicode=NFKC", "--min_characters=6", "--drop_regex=(?i)LOREM", "--drop_regex=xyz"]
    more = [f"--source=jsonl:{tmp_path}/t.jsonl", "--held_out=0", "--drop_duplicates", *cleaning]
    done = run("prepare_corpus", *flags(source, tmp_path / "c", *more))
    assert done.returncode == 0, done.stderr
    assert ": 2 documents (0 empty ones skipped)" in done.stdout
    assert done.stdout.endswith("dropped: 1 short, 1 regex, 1 duplicate\n")
    index = json.loads((tmp_path / "c" / "corpus.json").read_text())
    assert index["cleaning"]["drop_regex"] == ["(?i)LOREM", "xyz"] and index["statistics"]["documents_read"] == 5
    assert "| duplicates of an earlier one | 1 | 20.00% |" in (tmp_path / "c" / "README.md").read_text()
    refused = run("prepare_corpus", *flags(source, tmp_path / "c", *more, "--min_characters=7"))
    assert refused.returncode == 2 and "cleaning was {" in refused.stderr


def test_a_finished_corpus_that_lost_a_file_is_not_finished(source, tmp_path):
    output = tmp_path / "c"
    assert run("prepare_corpus", *flags(source, output)).returncode == 0
    path = max(output.glob("*.array_record*"))
    path.rename(tmp_path / "kept")
    done = run("prepare_corpus", *flags(source, output))
    running.assert_one_line(done.stderr, f"{path}: missing; copy the corpus again, or remove it and prepare it again")
    path.write_bytes((tmp_path / "kept").read_bytes()[:-1])
    done = run("prepare_corpus", *flags(source, output))
    running.assert_one_line(done.stderr, f"{path}: ", "bytes instead of")
    shutil.rmtree(output)
    assert run("prepare_corpus", *flags(source, output)).returncode == 0


def test_a_mistake_does_not_bind_the_corrected_command(source, tmp_path):
    texts = [f"the cat number {number} sat on the mat" for number in range(40)]
    tables.write_parquet(tmp_path / "a.parquet", texts, field="body")
    of_others = [flag for flag in flags(source, tmp_path / "c") if not flag.startswith("--source")]
    done = run("prepare_corpus", f"--source=parquet:{tmp_path}/a.parquet", *of_others)
    running.assert_one_line(done.stderr, "no text field 'text' (text fields: body)")
    done = run("prepare_corpus", f"--source=parquet:{tmp_path}/a.parquet:body", *of_others)
    assert done.returncode == 0 and "40 documents" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--drop_regex=("], "error: drop_regex='(': an invalid regex (missing ), unterminated subpattern"),
        (["--drop_near_duplicates=2"], "error: drop_near_duplicates=2.0: is not from 0.5 to below 1; use e.g. 0.8"),
        (["--tokenizer=no/such"], "error: no/such: no such tokenizer folder; make it with tools/train_tokenizer.py"),
        (["--source=web:x"], "error: source 'web:x': unknown kind 'web'; use one of"),
        (["--held_out=2"], "error: flag --held_out=2"),
        (["--held_uot=0.1"], "error: Unknown command line flag 'held_uot'"),
        (["stray"], "error: unexpected argument 'stray'; flags are written --name=value"),
    ],
)
def test_mistakes_are_one_line(source, tmp_path, more, message):
    done = run("prepare_corpus", *flags(source, tmp_path / "c", *more))
    assert done.returncode == 2
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1


def test_the_file_can_be_the_document(source, tmp_path):
    """And the tokenizer may be named by a run that has it."""
    shutil.copytree(source / "tokenizer", tmp_path / "run" / "tokenizer")
    (tmp_path / "run" / "config.json").write_text('{"task": "pretraining"}')
    of_run = f"--tokenizer={tmp_path / 'run'}"
    done = run("prepare_corpus", *flags(source, tmp_path / "c", "--document=file", "--held_out=0", of_run))
    assert done.returncode == 0, done.stderr
    index = json.loads((tmp_path / "c" / "corpus.json").read_text())
    assert list(index["splits"]) == ["train"] and index["splits"]["train"]["documents"] == 1
    refused = run("prepare_corpus", *flags(source, tmp_path / "c", "--held_out=0"))
    assert refused.returncode == 2 and "source was" in refused.stderr


def test_other_sources(tmp_path):
    """A tokenizer from Parquet, a corpus from a dump whose markup two processes convert."""
    tables.write_parquet(tmp_path / "a.parquet", ["the small cat sat on a mat", "a cat near the mat said nothing"] * 50)
    pages = [
        page(number, f"Cat {number}", f"The '''small cat''' sat near the [[mat]] {number}.") for number in range(1, 41)
    ]
    (tmp_path / "a.xml.bz2").write_bytes(bz2.compress(dump(pages)))
    names = (f"--source=parquet:{tmp_path}/*.parquet", f"--source=wikipedia-xml:{tmp_path}/a.xml.bz2")
    done = run("train_tokenizer", names[0], "--vocab_size=60", f"--output={tmp_path}/tokenizer")
    assert done.returncode == 0 and "reading: 100% of the source, 100 documents" in done.stderr, done.stderr
    of_tokenizer = f"--tokenizer={tmp_path}/tokenizer"
    done = run("prepare_corpus", names[1], of_tokenizer, f"--output={tmp_path}/corpus", "--workers=2", "--held_out=0.3")
    assert done.returncode == 0 and "40 documents (0 empty ones skipped)" in done.stdout, done.stderr
    assert min(Corpus.open(tmp_path / "corpus", split).num_documents for split in ("train", "validation")) > 3
    done = run("prepare_corpus", f"{names[0]}:body", of_tokenizer, f"--output={tmp_path}/other")
    running.assert_one_line(done.stderr, "a.parquet: no text field 'body' (text fields: text)")
    assert done.returncode == 2

"""The suites of tools/benchmark.py at their smallest, and what they print; nothing here depends on how fast anything is."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bert_jax.data.corpus.format import Corpus
from bert_jax.data.remote import Url
from bert_jax.errors import UserError
from tests.running import ROOT, assert_one_line, run
from tools.lib import benchmark_training
from tools.lib.benchmark_all import report, run_all
from tools.lib.benchmark_bucket import bucket_rows
from tools.lib.benchmark_data import stream_of
from tools.lib.benchmark_material import Material
from tools.lib.benchmark_rows import Row, number, print_rows, rate, ratio_row
from tools.lib.benchmark_settings import Settings
from tools.lib.benchmark_sides import check_rival, rival, take_turns
from tools.lib.benchmark_start import corpus_of_many_shards, start_rows

TOOL = str(ROOT / "tools" / "benchmark.py")
FACTS = {"platform", "device", "devices", "processor", "cores", "python", "jax"}
# Suites in the order in which they run in one process.
EVERY_SUITE = """
import sys
from tools.benchmark import SUITES
from tools.lib.benchmark_rows import print_rows
from tools.lib.benchmark_settings import Settings

settings = Settings(turns=1, quick=True, source=sys.argv[2], data=sys.argv[1])
for name, suite in SUITES.items():
    assert print_rows(name, *suite(settings)), name
"""
ROWS = {
    "matmul": ["float32, square", "bfloat16, square", "memory, bytes read and written"],
    "attention": ["cudnn", "splash", "256 segments: plain", "256 segments: chunked"],
    "train_step": ["bert_jax"],
    "finetune": ["bert_jax"],
    "predict": ["bert_jax"],
    "serve": ["1 client: bert_jax", "4 clients: bert_jax"],
    "input": [f"whole words, 128: {name}" for name in ("one core", "one worker")],
    "prepare": ["one core", "tokenizers", "ratio to tokenizers"],
    "checkpoint": ["copy from the devices", "save: training waits", "save: writing after that", "restore"],
    "compile": ["trace", "lower", "compile", "read from the cache"],
    "startup": ["imports of jax, flax and orbax"],
}


@pytest.fixture(scope="module")
def source(documents, tmp_path_factory) -> str:
    """Generated documents, of which the suites make their data."""
    path = tmp_path_factory.mktemp("source") / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": document.text}) + "\n" for document in documents))
    return f"jsonl:{path}"


@pytest.fixture(scope="module")
def printed(source, tmp_path_factory) -> list[str]:
    """What all suites print."""
    command = [sys.executable, "-c", EVERY_SUITE, str(tmp_path_factory.mktemp("benchmark")), source]
    return run(command).stdout.splitlines()


@pytest.fixture(scope="module")
def results(printed) -> dict[str, dict]:
    """The lines of JSON, by suite."""
    return {result["suite"]: result for result in map(json.loads, (line for line in printed if line[0] == "{"))}


@pytest.mark.parametrize("suite", ROWS)
@pytest.mark.slow
def test_every_suite_measures(results, suite):
    result = results[suite]
    assert result.keys() == {"suite", "machine", "settings", "peak_memory_bytes", "rows"}
    assert result["machine"].keys() == FACTS and result["machine"]["platform"] == "cpu"
    assert result["peak_memory_bytes"] > 1e6
    names = [row["name"] for row in result["rows"]]
    assert len(names) == len(ROWS[suite]) and all(map(str.startswith, names, ROWS[suite])), names
    for row in result["rows"]:
        if "median" not in row:
            assert "needs" in row["note"]  # another platform
            continue
        assert 0 < row["low"] <= row["median"] <= row["high"] and row["turns"] >= 1 and row["unit"]
        assert row.get("share_of_ceiling", 0.5) > 0


@pytest.mark.slow
def test_the_table_ends_with_the_values(results, printed):
    """Each row of `input` ends with N.NN M tokens/s."""
    lines = [line for line in printed if line.startswith("whole words,")]
    assert len(lines) == 2
    for line, row in zip(lines, results["input"]["rows"], strict=True):
        assert line.endswith(f" {row['median']:,.2f} M tokens/s")


@pytest.mark.slow
def test_implementations_of_attention_agree(results):
    """The suite compares each implementation with `plain`; one that disagrees fails."""
    chunked = results["attention"]["rows"][3]
    assert chunked["name"].endswith("chunked") and chunked["note"].startswith("differs from plain by")
    assert chunked["ratio"]["to"] == "plain" and "failed" not in chunked
    assert "by 0.0e+00" not in chunked["note"]  # its sums over two blocks round differently


@pytest.mark.slow
def test_tables_fit_into_100_columns(printed):
    assert max(len(line) for line in printed if line[0] != "{") <= 100


def test_a_rival_that_fails_is_a_row(source, tmp_path, monkeypatch):
    def child(*arguments):
        raise UserError("out of memory")

    monkeypatch.setattr(Settings, "child", child)
    settings = Settings(turns=1, quick=True, source=source, data=str(tmp_path), against="transformers")
    _, rows = benchmark_training.train_step(settings)
    own, *others = rows
    assert own.name == "bert_jax" and own.values and own.share
    assert [(row.name, row.note, row.failed) for row in others] == [
        ("transformers", "out of memory", True),
        ("transformers, padded text", "out of memory", True),
    ]


@pytest.mark.parametrize("suite", ["train_step", "finetune", "predict", "input"])
def test_a_rival_answers(suite, source, tmp_path, transformers):
    flags = ["--quick", "--turns=1", f"--source={source}", f"--data={tmp_path}", "--against=transformers"]
    result = json.loads(run([sys.executable, TOOL, suite, *flags]).stdout.splitlines()[-1])
    of_rival = [row for row in result["rows"] if "transformers" in row["name"]]
    assert of_rival and all(row["median"] > 0 for row in of_rival)
    assert suite == "input" or any(row["name"] == "ratio to transformers" for row in of_rival)


@pytest.mark.parametrize(
    ("setting", "python", "message"),
    [
        ("NAME", sys.executable, "--rival_environment=NAME: write NAME=VALUE"),
        ("NAME=x", sys.executable, "cannot import no_such_package; name one that can: --rival_python (ModuleNotFound"),
        ("NAME=x", "/no/python", "/no/python cannot import no_such_package"),
    ],
)
def test_a_rival_that_cannot_start(setting, python, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_rival(["no_such_package"], python, [setting])


def test_a_rival_that_ends_says_why():
    with pytest.raises(
        UserError, match=r"^benchmark_rival_input.py ended with exit code 1: \w+Error: .*'(transformers|tokenizer)'"
    ):
        rival("benchmark_rival_input.py", {}, sys.executable, [])


@pytest.mark.slow
def test_all_goes_on_after_a_failure(tmp_path, source):
    flags = ["--quick", f"--source={source}", "--corpus=no-corpus", f"--output={tmp_path / 'out'}"]
    done = run([sys.executable, TOOL, "all", "--suites=input,prepare", *flags], code=1)
    assert "failed: input" in done.stdout
    lines = list(map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines()))
    assert [line["suite"] for line in lines] == ["input", "prepare"]
    assert "no-corpus" in lines[0]["error"] and "rows" not in lines[0]
    assert lines[1].keys() >= {"rows", "machine"} and "--turns=1" in lines[1]["flags"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## input\n\nFailed: error: " in text and "| one core | " in text

    # Another call replaces its own suites, and keeps the others; values may follow a space.
    run([sys.executable, TOOL, "all", "--quick", "--suites", "matmul", "--output", str(tmp_path / "out")])
    again = list(map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines()))
    assert [line["suite"] for line in again] == ["matmul", "input", "prepare"] and again[1:] == lines


def test_all_checks_its_flags(tmp_path):
    suites: dict[str, list[str]] = {"matmul": [], "input": []}
    with pytest.raises(UserError, match="--suites=speed: no such suite; choose from matmul, input"):
        run_all(suites, ["input", "speed"], str(tmp_path), Settings())
    with pytest.raises(UserError, match="--output is missing"):
        run_all(suites, [], "", Settings())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_interrupt_during_the_turns_is_one_line(tmp_path):
    command = [sys.executable, TOOL, "train_step", "--quick", "--turns=1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert any("median" in line for line in process.stdout), "the table's heading"
            time.sleep(8)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        assert errors == "interrupted\n" and process.returncode == 130


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["speed"], ["name what to measure first", "matmul", "all"]),
        (["matmul", "--size=huge"], ["--size", "modernbert"]),
        (["matmul", "--suites=input"], ["--suites: is for 'all'"]),
        (["matmul", "--against=transformers"], ["--against: there is no rival for matmul"]),
        (["train_step", "--config=configs/quickstart.py", "--size=mini"], ["--size: has no effect with --config"]),
        (["train_step", "--rival_environment=X"], ["--rival_environment=X: write NAME=VALUE"]),
        (["all", "--against=transformers", "--rival_python=/no/python"], ["/no/python cannot import torch"]),
    ],
)
def test_bad_flags(flags, parts):
    assert_one_line(run([sys.executable, TOOL, *flags], code=2).stderr, *parts)


def test_data_of_other_texts_is_refused(tmp_path):
    Material(Settings(data=str(tmp_path), quick=True))
    with pytest.raises(UserError, match="use another folder"):
        Material(Settings(data=str(tmp_path), quick=False))
    with pytest.raises(UserError, match="--glue_task=RTE: needs --glue_dir"):
        Material(Settings(data=str(tmp_path), quick=True, glue_task="RTE")).glue()
    with pytest.raises(UserError, match=r"--glue_dir=.*: has no MRPC"):
        Material(Settings(data=str(tmp_path), quick=True, glue_dir=str(tmp_path / "no"))).glue()
    with pytest.raises(UserError, match=r"--corpus=.*: no finished corpus"):
        Material(Settings(data=str(tmp_path), quick=True, corpus=str(tmp_path / "no"))).corpus()


def test_a_failed_row_is_printed_and_counts(capsys):
    rows = [
        rate("own", "tokens/s", 1500.0, [0.5, 1.0, 0.75], share=0.5),
        ratio_row("other", [2.0, 2.0, 3.0], [1.0, 0.5, 1.0]),
        Row("wrong", "ms", [1.0], note="differs | by 1.0", failed=True),
        Row("absent", note="out of memory"),
    ]
    assert print_rows("suite", {"turns": 3}, rows[:2]) and not print_rows("suite", {"turns": 3}, rows)
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[-6].endswith("1,500 to 3,000  2,000 tokens/s") and lines[-5].endswith("2.00 to 4.00  3.00 x")
    assert lines[-2].endswith("skipped") and lines[-1].strip() == "out of memory"
    result = json.loads(last)
    assert result["rows"][0]["share_of_ceiling"] == 0.5 and result["rows"][2]["failed"] is True
    text = report([result | {"seconds": 1.0}])
    assert "| wrong | 1.00 ms | 1.00 to 1.00 |  |  | differs \\| by 1.0 |" in text and "| absent | skipped |" in text


def test_turns_end_after_a_time_but_not_before_the_third():
    order = []
    sides = {name: lambda name=name: order.append(name) or float(len(order)) for name in "ab"}
    assert take_turns(sides, 5, seconds=-1.0) == {"a": [1.0, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}
    assert order == list("ababab")
    assert [len(values) for values in take_turns(sides, 2, seconds=-1.0).values()] == [2, 2]


def test_numbers_keep_their_digits():
    assert [number(value) for value in (0.126, 29.8, 999.994, 5432.4)] == ["0.13", "29.80", "999.99", "5,432"]


def test_mixed_lengths_come_from_the_texts(tmp_path, source):
    """Lengths are those of paragraphs with their special tokens, cut at the longest."""
    material = Material(Settings(data=str(tmp_path), quick=True, source=source))
    lengths = material.lengths(12)
    assert len(lengths) == len(material.texts()) and max(lengths) == 12 and min(lengths) >= 3
    assert np.mean(lengths) < np.mean(material.lengths(1000))
    assert Path(material.corpus()).parent == tmp_path


def test_the_first_batches_of_a_corpus_of_many_shards(corpus_dir, tmp_path):
    rows = [*start_rows(Settings(turns=2), str(corpus_dir), 4, ("packed documents",), stream_of, shards=5)]
    assert [row.name.rpartition(": ")[2] for row in rows] == ["batch of step 0", "batch of step 1,000,000"]
    assert all(value > 0 for row in rows for value in row.values)
    one, many = (Corpus.open(folder) for folder in (corpus_dir, corpus_of_many_shards(corpus_dir, tmp_path, 5)))
    zero, starts = np.zeros(5, int), np.array([0, 7, 2047, 0, 0])
    assert np.array_equal(many.tokens(np.arange(5), starts, 100), one.tokens(zero, starts, 100))
    assert np.array_equal(many.document_lengths(4), one.document_lengths(0))


def test_a_corpus_in_a_bucket(s3, corpus_dir):
    rows = [*bucket_rows(Settings(turns=2, quick=True), str(corpus_dir), 4, stream_of)]
    assert [row.name.rpartition(" from ")[2] for row in rows] == ["files", "S3"]
    assert all(value > 0 for row in rows for value in row.values) and len(rows[1].ratios) == 2
    assert Url(s3).sizes() is not None, "the other server is used again"


def test_without_a_server_the_bucket_is_skipped(corpus_dir, monkeypatch):
    monkeypatch.setattr("tools.lib.s3_server.util.find_spec", lambda package: None)
    (row,) = bucket_rows(Settings(turns=1, quick=True), str(corpus_dir), 4, stream_of)
    assert row.cells()[-1] == "skipped" and "moto or s3fs is not installed; pip install" in row.note

"""The reference run: budgets, how many steps fit into them, a whole run that is stopped and resumed, and its records."""

import json
import os
import re
import signal
import sys

import jax
import msgspec
import pytest

from bert_jax import run
from bert_jax.data.corpus.format import Corpus
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.parallel.mesh import make_mesh
from bert_jax.run_folder.folder import read_config
from bert_jax.tasks import base as tasks
from bert_jax.train.loop import EXIT_STOPPED
from configs.cramming import RECIPES, get_config, seconds_of
from tests.conftest import DOCUMENTS, ROOT
from tests.data.datasets.test_glue import write_split
from tests.running import finish, losses, signal_at, start
from tools.cramming import INITIAL_WEIGHTS, Options, ReferenceRun, changed, check, check_held_out
from tools.lib import cramming_budget
from tools.lib.cramming_budget import MARGIN, Rates, steps_within
from tools.lib.cramming_records import COLUMNS, Record, markdown, read_records, row
from tools.lib.cramming_state import PretrainingAttempt, State

SMALL = {
    "model.hidden_size": 32,
    "model.num_heads": 2,
    "model.num_layers": 1,
    "model.intermediate_size": 32,
    "data.sequence_length": 32,
    "train.batch_size": 8,
    "train.eval_examples": 16,
    "train.eval_batch_size": 16,
}


def options(**changed_options) -> Options:
    values = {"budget": "10m", "source": "", "corpus": "", "glue_dir": "", "tasks": ["CoLA"], "seeds": 1}
    return Options(**values | {"pretrain": [], "finetune": []} | changed_options)


@pytest.mark.parametrize(("budget", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("1d", 86400)])
def test_budgets(budget, seconds):
    assert seconds_of(budget) == seconds


@pytest.mark.parametrize("budget", ["", "10", "m", "0h", "-1h", "1 h", "1h30m", "1w", "infd"])
def test_budgets_that_are_no_time(budget):
    with pytest.raises(UserError, match=r"use a number above 0 and a unit, s, m, h or d"):
        seconds_of(budget)


@pytest.mark.parametrize("platform", RECIPES)
def test_longer_budgets_have_larger_recipes(platform):
    configs = [get_config(f"{budget},{platform},1000") for budget in ("1s", "10m", "1h", "30d")]
    sizes = [config.model.num_layers * config.model.hidden_size**2 for config in configs]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert {config.optimizer.warmup_steps for config in configs} == {100}
    for config in configs:
        assert config.train.batch_size % config.train.accumulation_steps == 0


def test_arguments_of_the_config():
    assert get_config("1h") == get_config("1h,gpu")
    for argument, message in (
        ("1h,abacus", "FILE:1h,abacus: 'abacus' is not one of cpu, gpu, tpu"),
        ("1h,cpu,many", "'many' is not a number"),
        ("1h,cpu,100,7", r"FILE:1h,cpu,100,7: write BUDGET\[,PLATFORM"),
    ):
        with pytest.raises(UserError, match=message):
            get_config(argument)


def test_without_steps_it_names_the_tool(corpus_dir, tmp_path):
    config = get_config("1h,cpu")
    config.data.corpus = str(corpus_dir)
    with pytest.raises(UserError, match=r"train.num_steps=0 must be at least 1; .*tools/cramming.py"):
        tasks.create(config.lock(), tmp_path)


def test_steps_within_a_budget():
    rates = Rates(step=0.5, rest=8.0)
    steps = steps_within(rates, 100.0)
    assert rates.rest + steps * rates.step <= (1 - MARGIN) * 100.0 < rates.rest + (steps + 1) * rates.step
    with pytest.raises(UserError, match=r"take 8.0 s, and a step 0.50 s; a budget of at least 9s is needed"):
        steps_within(rates, 8.0)


def test_bad_input(corpus_dir, tmp_path):
    corpus = str(corpus_dir)
    write_split(tmp_path, "CoLA", "train")
    for changes, message in (
        ({}, "set either --source"),
        ({"corpus": corpus, "source": "text:x"}, "set either --source"),
        ({"corpus": str(tmp_path / "no")}, "--corpus=.*no: no finished corpus; use a folder"),
        ({"corpus": corpus}, "--glue_dir=: has no CoLA; set it to the folder"),
        ({"corpus": corpus, "glue_dir": str(tmp_path), "tasks": ["CoLA", "RTE"]}, "has no RTE; set it"),
        ({"corpus": corpus, "glue_dir": str(tmp_path), "tasks": ["X"]}, "--tasks=X: no such task"),
    ):
        with pytest.raises(UserError, match=message):
            check(options(**changes))
    with pytest.raises(UserError, match="none is held out for evaluation; use more text"):
        index = json.loads((corpus_dir / "corpus.json").read_text())
        del index["splits"]["validation"]
        (tmp_path / "corpus.json").write_text(json.dumps(index))
        check_held_out(tmp_path, "use more text")
    for change in ("train.num_stesp=3", "train=3", "train.batch_size=many", "x"):
        with pytest.raises(UserError, match=re.escape(f"--pretrain={change}: ")):
            changed(get_config("1h,cpu"), "--pretrain", [change])
    with pytest.raises(UserError, match=r"=model.layers=3: no such option 'layers'; choose from num_layers") as caught:
        changed(get_config("1h,cpu"), "--pretrain", ["model.layers=3"])
    assert len(str(caught.value)) < 200
    for changes, message in (
        ({"finetune": ["model.foo=3"]}, "--finetune=model.foo=3: no such option 'foo'"),
        ({"pretrain": ["model.foo=3"]}, "--pretrain=model.foo=3: no such option 'foo'"),
        ({"pretrain": ["model.attention=splash"]}, "model.attention=splash needs a TPU"),
        ({"pretrain": ["model.dtype=float16"]}, "model.dtype=float16: its gradients vanish"),
        ({"pretrain": ["train.batch_size=12"]}, "train.batch_size=12 does not divide"),
    ):
        own = options(corpus=corpus, glue_dir=str(tmp_path), **changes)
        with pytest.raises(UserError, match=message):
            ReferenceRun(tmp_path / "run", own)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def one_device(monkeypatch):
    """Runs of this process use one device, as the commands do, and do not measure what it can do."""
    monkeypatch.setattr(run, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
    monkeypatch.setattr(run, "measured_matmul_flops", lambda *_: 1e12)
    monkeypatch.setattr(cramming_budget, "SHARE", 0.0)  # as few steps as possible


def test_tokenizer_and_corpus_of_a_source(documents, tmp_path):
    (tmp_path / "texts").write_text("\n\n".join(document.text for document in documents))
    write_split(tmp_path, "CoLA", "train")
    own = options(source=f"text:{tmp_path}/texts", glue_dir=str(tmp_path), pretrain=["model.vocab_size=150"])
    reference = ReferenceRun(tmp_path / "run", own)
    reference.prepare_corpus()
    assert Tokenizer.load(tmp_path / "run" / "corpus" / "tokenizer").vocab_size == 150
    assert Corpus.open(tmp_path / "run" / "corpus", "train").num_documents < DOCUMENTS


@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed(corpus_dir, tmp_path, one_device):
    for split in ("train", "dev"):
        write_split(tmp_path, "CoLA", split, count=16)
    own = options(
        corpus=str(corpus_dir),
        glue_dir=str(tmp_path),
        pretrain=[f"{name}={value}" for name, value in SMALL.items()],
        finetune=["train.num_steps=2", "data.sequence_length=32"],
    )
    workdir = tmp_path / "run"
    workdir.mkdir()

    # The number of steps is what was measured.
    reference = ReferenceRun(workdir, own)
    reference.calibrate()
    state = State.of(reference.state_file, own._asdict())
    assert state.rates.step > 0 and state.rates.rest > 0
    assert state.num_steps == steps_within(state.rates, 600.0) and not (workdir / "calibration").exists()
    state.num_steps = 300  # these would take 10 minutes
    state.save(reference.state_file)

    # The same command continues, is stopped, and continues again.
    flags = [f"--{name}={getattr(own, name)}" for name in ("budget", "corpus", "glue_dir")]
    flags += ["--tasks=CoLA", *(f"--pretrain={change}" for change in own.pretrain)]
    flags += [f"--finetune={change}" for change in own.finetune]
    process = start([sys.executable, str(ROOT / "tools" / "cramming.py"), f"--workdir={workdir}", *flags])
    signal_at(process, workdir / "pretrain", 10, signal.SIGTERM)
    done = finish(process)
    assert done.returncode == EXIT_STOPPED, done.stdout + done.stderr
    assert "300 steps of" in done.stdout and "short runs" not in done.stdout
    record = ReferenceRun(workdir, own).run_all()
    state = State.of(reference.state_file, own._asdict())
    assert len(state.attempts) == 2 and record.used_seconds == sum(attempt.seconds for attempt in state.attempts)
    assert list(losses(workdir / "pretrain")) == list(range(10, 301, 10))
    starts = [json.loads(line)["step"] for line in (workdir / "pretrain" / "starts.jsonl").read_text().splitlines()]
    assert starts[0] == 0 < starts[1] < 300
    config = read_config(workdir / "pretrain")
    assert config["train"]["num_steps"] == 300 and config["optimizer"]["warmup_steps"] == 30

    # The record, of files that are there.
    assert (record.steps, record.tokens, record.budget_seconds) == (300, 300 * 8 * 32, 600.0)
    assert 0 < record.accuracy < 1 and record.loss == state.held_out["mlm/loss"]
    assert record == read_records_of(workdir)
    for weights, scores in zip(INITIAL_WEIGHTS, (record.glue, record.glue_scratch), strict=True):
        assert scores == {"CoLA": [state.scores[f"{weights}/CoLA/seed_0"]["matthews"]]}
        finetuned = read_config(workdir / "glue" / weights / "CoLA" / "seed_0")
        assert finetuned["from_scratch"] == (weights == "scratch") and finetuned["init_from"] == str(
            workdir / "pretrain"
        )
    # What is finished is not done again.
    known = {path: path.stat().st_mtime_ns for path in workdir.glob("*/**/metrics.jsonl")}
    assert ReferenceRun(workdir, own).run_all() == record and len(known) == 3
    assert {path: path.stat().st_mtime_ns for path in known} == known
    with pytest.raises(UserError, match="use the same flags or another --workdir"):
        ReferenceRun(workdir, own._replace(budget="1h"))


def read_records_of(workdir) -> Record:
    """The record that a run wrote."""
    folder = workdir / "records"
    folder.mkdir()
    (folder / "one.json").write_bytes((workdir / "record.json").read_bytes())
    (record,) = read_records(folder)
    return record


def test_an_attempt_that_was_killed_counts(tmp_path):
    """Up to its last row of metrics."""
    path, run_folder = tmp_path / "state.json", tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "metrics.jsonl").touch()
    os.utime(run_folder / "metrics.jsonl", (1030.0, 1030.0))
    state = State({}, attempts=[PretrainingAttempt(start=1000.0)])
    with pytest.raises(KeyboardInterrupt), state.timed(path, run_folder):
        raise KeyboardInterrupt
    first, second = State.of(path, {}).attempts
    assert first.seconds == 30.0 and second.seconds is not None and state.used_seconds == 30.0 + second.seconds


RECORD = Record(
    *("2026-01-02", "1 x NVIDIA H100", "1h", 3600.0, 3564.0, "12 layers of 768, bfloat16", 110_000_000, 20_000),
    *(5_242_880_000, 1_000_000_000, 2.0, 0.6),
    glue={"CoLA": [0.25, 0.35], "RTE": [0.6, 0.6]},
    glue_scratch={"CoLA": [0.0], "RTE": [0.5]},
    commit="0123456789abcdef+changes",
    jax="0.10.2",
)


def test_a_row_of_the_table():
    cells = dict(zip(COLUMNS, row(RECORD), strict=True))
    assert cells["Budget (used)"] == "1h (99.0%)"
    assert cells["GLUE"] == "CoLA 0.300 ± 0.071, RTE 0.600 ± 0.000; mean 0.450"
    assert cells["GLUE, not pretrained"] == "CoLA 0.000, RTE 0.500; mean 0.250"
    assert row(msgspec.structs.replace(RECORD, glue={}))[COLUMNS.index("GLUE")] == "-"
    assert cells["Commit"] == "01234567+changes"
    assert "1h (102.8%, exceeded)" in row(msgspec.structs.replace(RECORD, used_seconds=3700.0))


def test_the_documented_table_is_that_of_the_records():
    records = read_records()
    assert records, "no records"
    table = "\n".join(markdown(records))
    assert f"\n\n{table}\n\n" in (ROOT / "docs" / "results.md").read_text(), f"write into docs/results.md:\n{table}"

"""Run folders as a stranger might send them: every JSON file of one damaged, numbers out of range, files of great size."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bert_jax
from bert_jax.config import to_config_dict
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.default_checkpoint import Selection, default_evaluation
from bert_jax.run_folder.resuming import check_same_run
from bert_jax.tasks import base as tasks
from bert_jax.tasks import qa, text, tokens
from bert_jax.train.writers.jsonl import METRICS, Writer, evaluations, read_rows
from tests import running
from tests.hostile import limits

fuzz = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def folder(tiny_bert, tmp_path_factory) -> Callable[[str], Path]:
    """`folder(config)`: the imported run with another text as its config.json; one folder, which is used again."""
    place = tmp_path_factory.mktemp("hostile") / "run"
    place.mkdir()
    for path in tiny_bert.iterdir():
        if path.name != run_folder.CONFIG:
            (place / path.name).symlink_to(path)

    def make(config: str) -> Path:
        (place / run_folder.CONFIG).write_text(config, errors="surrogatepass")
        return place

    return make


@pytest.mark.parametrize("name", ["objectives", "options", "data", "init_from"])
def test_a_config_without_an_option(tiny_bert, folder, name):
    config = json.loads((tiny_bert / run_folder.CONFIG).read_text())
    del config[name]
    place = folder(json.dumps(config))
    limits.accepted_or_refused(lambda: tasks.create(run_folder.get_config(str(place)), place))


@fuzz
@given(data=st.data())
def test_config_of_a_run(tiny_bert, folder, data):
    config = json.loads((tiny_bert / run_folder.CONFIG).read_text())
    place = folder(data.draw(limits.mutated_json(config)))
    limits.accepted_or_refused(lambda: bert_jax.load(place))
    values = limits.accepted_or_refused(lambda: run_folder.get_config(str(place)))
    if values is not None:
        limits.accepted_or_refused(lambda: tasks.create(values, place))
        limits.accepted_or_refused(lambda: check_same_run(place, config))
        limits.accepted_or_refused(lambda: default_evaluation(place))


def tuned(tiny_bert: Path, place: Path, config: Any, files: dict[str, str]) -> Callable[[], Any]:
    """Makes a fine-tuned run without checkpoints, of these files; returns what opens it."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / run_folder.TOKENIZER).symlink_to(tiny_bert / run_folder.TOKENIZER)
    model = json.loads((tiny_bert / run_folder.CONFIG).read_text())["model"]
    values = to_config_dict(config)
    values.update_from_flattened_dict({f"model.{name}": value for name, value in model.items()})
    values.data.sequence_length = 16
    run_folder.write_config(place, values.to_dict())
    for name, content in files.items():
        (place / name).write_text(content)
    return lambda: tasks.create(run_folder.get_config(str(place)), place)


CASES = [
    (text.Config(), {run_folder.LABELS: ["no", "yes"], run_folder.TEMPERATURE: 1.5}),
    (tokens.Config(), {run_folder.LABELS: ["B-PER", "I-PER", "O"], run_folder.SCHEME: "IOB2"}),
    (qa.Config(data=qa.DataConfig(max_query_length=4, doc_stride=2)), {run_folder.THRESHOLD: -0.5}),
]


@fuzz
@given(case=st.sampled_from(CASES), data=st.data())
def test_files_of_a_fine_tuned_run(tiny_bert, tmp_path_factory, case, data):
    config, files = case
    name = data.draw(st.sampled_from(sorted(files)))
    texts = {other: json.dumps(value) for other, value in files.items()}
    texts[name] = data.draw(limits.mutated_json(files[name]))
    place = tmp_path_factory.getbasetemp() / "tuned"
    limits.accepted_or_refused(tuned(tiny_bert, place, config, texts))


@pytest.mark.parametrize("case", CASES)
def test_the_valid_files_are_accepted(tiny_bert, tmp_path, case):
    config, files = case
    assert tuned(tiny_bert, tmp_path / "run", config, {name: json.dumps(value) for name, value in files.items()})()


@pytest.mark.parametrize(
    "name, content, message",
    [
        (run_folder.TEMPERATURE, "NaN", "damaged"),
        (run_folder.TEMPERATURE, "0", "damaged"),
        (run_folder.TEMPERATURE, "-1.5", "damaged"),
        (run_folder.TEMPERATURE, "1e-300", "damaged"),
        (run_folder.TEMPERATURE, "1e308", "damaged"),
        (run_folder.TEMPERATURE, "1e999", "damaged"),
        (run_folder.LABELS, '["yes", "yes"]', "duplicate"),
        (run_folder.LABELS, '{"yes": 1}', "damaged"),
        (run_folder.LABELS, "[" * 200_000, "damaged"),
        (run_folder.LABELS, "1" * 5000, "damaged"),
        (run_folder.LABELS, "\ufeff[]", "damaged"),
    ],
)
def test_values_that_no_run_writes(tiny_bert, tmp_path, name, content, message):
    config, files = CASES[0]
    texts = {other: json.dumps(value) for other, value in files.items()} | {name: content}
    with limits.refused(name, message):
        tuned(tiny_bert, tmp_path / "run", config, texts)()


def test_missing_labels_are_told(tiny_bert, tmp_path, caplog):
    rows = tmp_path / "train.jsonl"
    rows.write_text("".join(json.dumps({"text": "a ship", "label": label}) + "\n" for label in ("old", "new")))
    config = text.Config(data=text.DataConfig(train=str(rows)))
    with caplog.at_level("WARNING"):
        task = tuned(tiny_bert, tmp_path / "run", config, {})()
    assert task.labels == ["new", "old"] and "labels.json is missing" in caplog.text and str(rows) in caplog.text


@pytest.mark.parametrize(
    "option, value",
    [
        *(("dropout", value) for value in ("NaN", "7", "-0.1", "1.0", "1e999", '"0.1"', "true")),
        *(("norm_epsilon", value) for value in ("-1", "0", "NaN", "Infinity")),
        *(("initializer_range", value) for value in ("-1", "-Infinity")),
        *(("hidden_size", value) for value in ("1e9", "1000000000", "-4", "null", "[]", "{}")),
        *(("num_layers", value) for value in ("1000000000", "0", "2.5")),
        *(("max_positions", value) for value in ("1000000000", "-1")),
        *(("embedding_size", value) for value in ("-1", "99999999999")),
    ],
)
def test_sizes_and_numbers_out_of_range(tiny_bert, folder, option, value):
    config = json.loads((tiny_bert / run_folder.CONFIG).read_text())
    config["model"][option] = "HERE"
    place = folder(json.dumps(config).replace('"HERE"', value))
    if value == "null":  # as not set: the default, with which the checkpoint does not agree
        with limits.refused():
            bert_jax.load(place)
        return
    with limits.refused():
        bert_jax.load(place)


def test_long_sequences_are_refused_by_comparing_sizes(tiny_bert, folder):
    config = json.loads((tiny_bert / run_folder.CONFIG).read_text())
    for length, positions, message in ((10**9, 17, "sequence_length"), (10**9, 10**9, "max_positions")):
        config["data"]["sequence_length"], config["model"]["max_positions"] = length, positions
        place = folder(json.dumps(config))
        ended = limits.limited(
            running.command("predict", f"--workdir={place}", "--text=the old [MASK]"), megabytes=4000, seconds=60
        )
        limits.assert_refused(ended, message)


# ----------------------------------------------------------------------------------------------------------------------
# metrics.jsonl, evaluation.json, starts.jsonl
# ----------------------------------------------------------------------------------------------------------------------


@fuzz
@given(data=st.data())
def test_rows_of_metrics(tmp_path_factory, data):
    place = tmp_path_factory.getbasetemp() / "metrics"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    row = data.draw(limits.mutated_json({"step": 3, "loss": 2.5, "eval/loss": 2.0}))
    path = place / METRICS
    path.write_text(f'{{"step": 1, "eval/loss": 3.0}}\n{row}\n{{"step": 4, "eval/loss": 1.0}}\n')
    if (found := limits.accepted_or_refused(lambda: evaluations(path))) is not None:
        assert found[0] == (1, {"eval/loss": 3.0}) and found[-1] == (4, {"eval/loss": 1.0})
    limits.accepted_or_refused(lambda: list(read_rows(path)))
    before = path.read_bytes()
    if limits.accepted_or_refused(lambda: Writer(place, 10)) is None:
        assert path.read_bytes() == before


def test_numbers_that_are_not_finite(tmp_path):
    Writer(tmp_path, 0).write(1, {"eval/loss": float("nan"), "eval/f1": 0.5, "loss": float("inf")})
    line = (tmp_path / METRICS).read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name)) == {
        "step": 1, "eval/loss": None, "eval/f1": 0.5, "loss": None,
    }  # fmt: skip
    assert evaluations(tmp_path / METRICS) == [(1, {"eval/f1": 0.5})]
    (tmp_path / METRICS).write_text('{"step": 1, "eval/loss": NaN, "eval/f1": 0.5}\n')  # as older versions wrote it
    assert evaluations(tmp_path / METRICS) == [(1, {"eval/f1": 0.5})]


def test_a_score_that_is_not_finite_is_never_the_best():
    selection = Selection("eval/loss", 0)
    assert [selection.add(step, {"eval/loss": loss}) for step, loss in enumerate([float("nan"), 2.0, 3.0])] == [
        False, True, False,
    ]  # fmt: skip


def test_metrics_of_a_million_steps_cost_little(tmp_path):
    """50 MB of rows, a few of which are evaluations."""
    rates = '"learning_rate": 0.0001, "gradient_norm": 1.25, "tokens_per_second": 123456.789, "loss": 2.5'
    with (tmp_path / METRICS).open("w") as file:
        for step in range(1, 500_001):
            file.write(f'{{"step": {step}, {rates}}}\n')
            if step % 50_000 == 0:
                file.write(f'{{"step": {step}, "eval/loss": 2.0}}\n')
    assert (tmp_path / METRICS).stat().st_size > 50e6
    code = """
import sys, pathlib
from bert_jax.train.writers.jsonl import Writer, evaluations
path = pathlib.Path(sys.argv[1])
assert len(evaluations(path / "metrics.jsonl")) == 10
Writer(path, 400_000)
assert len(evaluations(path / "metrics.jsonl")) == 8
"""
    ended = limits.limited(limits.python(code, tmp_path), megabytes=1500, seconds=30)
    assert ended.code == 0, ended
    # What importing jax and TensorBoard takes, and some.
    assert ended.megabytes < 600, ended


@fuzz
@given(data=st.data())
def test_evaluation_json(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / run_folder.EVALUATION
    path.write_text(data.draw(limits.mutated_json({"2": {"mlm/loss": 2.0}, "4": {"mlm/loss": 1.5, "loss": None}})))
    before = path.read_bytes()
    refused = (
        limits.accepted_or_refused(lambda: run_folder.add_evaluations(path.parent, {3: {"mlm/loss": 1.0}}) or True)
        is None
    )
    assert path.read_bytes() == before if refused else json.loads(path.read_text())["3"] == {"mlm/loss": 1.0}


@fuzz
@given(data=st.data())
def test_starts(tiny_bert, tmp_path_factory, data):
    place = tmp_path_factory.getbasetemp() / "starts"
    place.mkdir(exist_ok=True)
    shutil.copy(tiny_bert / run_folder.CONFIG, place)
    start = {"step": 0, "folder": "/somewhere", "packages": {"jax": "0.1"}, "command": "x"}
    (place / run_folder.STARTS).write_text(data.draw(limits.mutated_json(start)) + "\n")
    limits.accepted_or_refused(lambda: run_folder.read_config(place))


@pytest.mark.parametrize("name", [run_folder.CONFIG, run_folder.LABELS, METRICS, run_folder.STARTS])
def test_pipes_devices_and_folders_instead_of_files(tiny_bert, tmp_path, name):
    config, files = CASES[0]
    texts = {other: json.dumps(value) for other, value in files.items()}
    for number, make in enumerate((os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero"))):
        place = tmp_path / str(number)
        opened = tuned(tiny_bert, place, config, texts)
        (place / name).unlink(missing_ok=True)
        make(place / name)
        with limits.refused(name):
            opened()
            default_evaluation(place)


def test_messages_are_printable_and_short(tiny_bert, folder):
    config = json.loads((tiny_bert / run_folder.CONFIG).read_text())
    config["model"]["\x1b[31m" + "x" * 1_000_000] = "\x1b]0;title\x07"
    place = folder(json.dumps(config))
    done = running.finish(running.start([sys.executable, "-m", "bert_jax.predict", f"--workdir={place}", "--text=a"]))
    assert done.returncode == 2 and "\x1b" not in done.stderr and len(done.stderr) < 3000
    running.assert_one_line(done.stderr, "\\x1b[31m")

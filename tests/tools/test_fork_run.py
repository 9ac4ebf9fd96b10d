"""A fork goes on exactly as the run would have; the run itself is only read, and nothing is left in part."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from bert_jax.config import from_dict
from bert_jax.errors import EXIT_USER_ERROR, UserError
from bert_jax.files import write_json
from bert_jax.run import run_training
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.provenance import read_origin, read_starts
from bert_jax.tasks.common.phases import PhaseConfig
from bert_jax.tasks.pretraining import Config, check_options
from tests.running import ROOT, assert_one_line, checkpoints, command, rows, run
from tools.fork_run import fork, with_decay


def tool(*flags: str, code: int = 0):
    python, *_ = command("predict")
    return run([python, str(ROOT / "tools" / "fork_run.py"), *flags], code=code)


def options_of(workdir, **changes):
    values = run_folder.get_config(str(workdir))
    values.update_from_flattened_dict(changes)
    return values


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checksums(workdir, step: int):
    return json.loads((workdir / "checkpoints" / str(step) / "checksums" / "metadata").read_text())


@pytest.mark.slow
def test_a_fork_goes_on_as_the_run_did(run_with_average, tmp_path):
    whole = run_with_average
    before = contents(whole)
    output = tmp_path / "new" / "fork"
    done = tool(f"--workdir={whole}", "--step=2", f"--output={output}")
    assert f"{output}: goes on after step 2 of {whole}, up to step 4" in done.stdout
    assert contents(whole) == before, "the run is only read"
    assert checkpoints(output) == [2] and [path.name for path in output.parent.iterdir()] == ["fork"]
    assert rows(output) == [row for row in rows(whole) if row["step"] <= 2]
    run_training(options_of(output), output)
    assert rows(output) == rows(whole) and max(row["step"] for row in rows(output)) == 4
    assert checksums(output, 4) == checksums(whole, 4)
    assert read_origin(output) == {"tool": "fork_run", "sources": [{"run": str(whole), "step": 2}]}
    assert [start["step"] for _, start in read_starts(output)] == [0, 2, 2]


def test_options_may_change(run_with_average, tmp_path):
    whole = run_with_average
    values = options_of(whole, **{"optimizer.learning_rate": 1e-2, "train.num_steps": 3})
    assert fork(values, whole, 2, None, tmp_path / "fork") == (2, 3)
    config = run_folder.read_config(tmp_path / "fork")
    assert config["optimizer"]["learning_rate"] == 1e-2 and config["train"]["num_steps"] == 3
    values = options_of(whole, **{"model.hidden_size": 64})
    with pytest.raises(UserError, match=r"model\.hidden_size is 32 there, 64 here"):
        fork(values, whole, 2, None, tmp_path / "other")


@pytest.mark.slow
def test_a_decay_begins_where_the_run_is(run_with_average, tmp_path):
    whole = run_with_average
    output = tmp_path / "decay"
    assert fork(options_of(whole), whole, 2, (3, "sqrt"), output) == (2, 5)
    run_training(options_of(output), output)
    before, after = ({row["step"]: row for row in rows(folder) if "loss" in row} for folder in (whole, output))
    assert [before[step] for step in (1, 2)] == [after[step] for step in (1, 2)]
    assert after[3]["loss"] == before[3]["loss"], "the same parameters, and the same examples"
    decayed = [before[2]["learning_rate"] * (1 - (number / 3) ** 0.5) for number in range(3)]
    np.testing.assert_allclose([after[step]["learning_rate"] for step in (3, 4, 5)], decayed, rtol=1e-6)
    assert max(after) == checkpoints(output)[-1] == 5


def config_with(phases=(), **options) -> Config:
    """A run of 100 steps whose learning rate falls from 0.5 after step 10; rotary if the last phase has a rotary base."""
    config = Config()
    rotary = {"positions": "rope", "rope_theta": phases[-1].rope_theta} if phases and phases[-1].rope_theta else {}
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **rotary),
        train=dataclasses.replace(config.train, num_steps=100, batch_size=8),
        data=dataclasses.replace(config.data, sequence_length=32),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=0.5, warmup_steps=10, schedule="linear"),
        options=config.options | {"mlm": dataclasses.replace(config.options["mlm"], **options)},
        phases=phases,
    )


PHASES = (PhaseConfig(60, batch_size=4, rope_theta=5.0), PhaseConfig(100, sequence_length=16, rope_theta=7.0))


@pytest.mark.parametrize(
    ("phases", "step", "expected"),
    [
        ((), 41, [(41, 8, 32)]),
        (PHASES, 41, [(41, 4, 32)]),
        (PHASES, 60, [(60, 4, 32)]),
        (PHASES, 81, [(60, 4, 32), (81, 8, 16)]),
        (PHASES, 100, [(60, 4, 32), (100, 8, 16)]),
        ((PhaseConfig(share=0.6, batch_size=4), PhaseConfig(share=0.4, sequence_length=16)), 41, [(41, 4, 32)]),
    ],
)
def test_a_decay_is_a_phase_after_those_that_are_cut(phases, step, expected):
    config = config_with(phases)
    options = with_decay(config, step, 20, "sqrt")
    *before, decay = options["phases"]
    assert options["train"]["num_steps"] == decay["until_step"] == step + 20
    sizes = [
        (phase["until_step"], phase.get("batch_size") or 8, phase.get("sequence_length") or 32)
        for phase in options["phases"]
    ]
    assert sizes == [*expected, (step + 20, *expected[-1][1:])]
    assert decay["learning_rate"] == pytest.approx(0.5 * (101 - step) / 90, rel=1e-4)
    assert not any(phase.get("schedule") for phase in before)
    if phases == PHASES:
        assert options["model"]["rope_theta"] == (7.0 if step > 60 else 5.0)
    decayed = from_dict(Config(), options)
    check_options(decayed, is_new=False)
    (piece,) = decayed.rate_pieces
    assert piece == (step, step + 20, decay["learning_rate"], 0, "sqrt")


@pytest.mark.parametrize(
    ("phases", "now", "end"),
    [
        ((), 0.225, 0.15),
        ((PhaseConfig(100, sequence_length=16),), 0.225, 0.15),
        ((PhaseConfig(25), PhaseConfig(100, mlm_probability=0.4, mlm_probability_end=0.1)), 0.3, 0.1),
    ],
)
def test_mask_rates_go_on(phases, now, end):
    rates = {"mlm_probability": 0.3, "mlm_probability_end": 0.15} if len(phases) < 2 else {}
    config = config_with(phases, **rates)
    decayed = from_dict(Config(), with_decay(config, 50, 20, "linear"))
    check_options(decayed, is_new=False)
    before, decay = (decayed.options_of(phase)["mlm"] for phase in decayed.phases[-2:])
    assert before.rate(0.0) == (0.4 if len(phases) == 2 else 0.3)
    assert before.rate(1.0) == decay.rate(0.0) == pytest.approx(now) and decay.rate(1.0) == pytest.approx(end)
    assert not with_decay(config_with(), 50, 20, "linear")["phases"][-1].get("mlm_probability")


def test_nothing_to_decay():
    with pytest.raises(UserError, match="--step=1: the learning rate of this step is 0"):
        with_decay(config_with(), 1, 20, "sqrt")


def test_a_fork_is_whole_or_not_there(run_with_average, tmp_path):
    whole = run_with_average
    damaged = shutil.copytree(whole, tmp_path / "damaged")
    path = damaged / "checkpoints" / "3" / "checksums" / "metadata"
    write_json(path, {name: number ^ 1 for name, number in checksums(damaged, 3).items()})
    values = options_of(damaged)
    with pytest.raises(UserError, match=r"damaged/checkpoints/3: damaged checkpoint \(.*; use another"):
        fork(values, damaged, 3, None, tmp_path / "fork")
    (damaged / "metrics.jsonl").write_text('{"step": 1}\nnot a row}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: damaged"):
        fork(values, damaged, 2, None, tmp_path / "fork")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"], "no draft is left"


def test_mistakes_are_one_line(run_with_average, tiny_bert, tmp_path):
    whole = run_with_average
    values, output = options_of(whole), tmp_path / "fork"
    for workdir, step, message in [
        (whole, 5, "no checkpoint of step 5; choose from 2, 3, 4"),
        (whole, None, "run: ends at step 4, so nothing is left to train after step 4; set --decay_steps, or"),
        (tiny_bert, None, "has no checkpoint of training; train it first, or begin a run from it with"),
    ]:
        with pytest.raises(UserError, match=message):
            fork(values, workdir, step, None, output)
    with pytest.raises(UserError, match="exists and is not empty; choose a new folder"):
        fork(values, whole, 4, None, whole)
    with pytest.raises(UserError, match=r"steps 4 to 7: schedule='qubic' is not one of constant, linear"):
        fork(values, whole, 4, (3, "qubic"), output)
    with pytest.raises(UserError, match=r"--decay_steps sets train\.num_steps; leave --config\.train\.num_steps out"):
        fork(options_of(whole, **{"train.num_steps": 9}), whole, 4, (3, "sqrt"), output)
    other = tmp_path / "other"
    other.mkdir()
    run_folder.write_config(other, run_folder.read_config(whole) | {"task": "text"})
    with pytest.raises(UserError, match="a run of the task text; only runs of pretraining are forked"):
        fork(values, other, None, None, output)
    done = tool(f"--output={output}", f"--workdir={whole}", "--config.train.steps=3", code=EXIT_USER_ERROR)
    assert_one_line(done.stderr, "--config.train.steps: no such option")
    assert not output.exists() and np.all([path.name == "other" for path in tmp_path.iterdir()])

"""A run of two phases, short rows and then long ones: shapes, example numbers, rates; resumed on both sides of the border."""

import json
import shutil

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax import run
from bert_jax.config import from_dict
from bert_jax.conversion.model_card import model_card
from bert_jax.errors import UserError
from bert_jax.parallel.mesh import make_mesh
from bert_jax.run_folder.folder import get_config
from bert_jax.tasks import base as tasks
from bert_jax.tasks.common.training import training_batches
from bert_jax.tasks.pretraining import Config
from bert_jax.train.flops import flops_per_token as flops_per_token_of
from bert_jax.train.loop import Stopped
from bert_jax.train.writers.jsonl import METRICS, read_rows
from tests.running import rows

PHASES = (
    {"until_step": 3, "batch_size": 16, "sequence_length": 16},
    {"until_step": 6, "accumulation_steps": 2},
)


@pytest.fixture(scope="module")
def config(tiny_config):
    def make(phases=PHASES):
        options = {"train.num_steps": 6, "checkpoint.every": 100, "model.dropout": 0.1}
        values = tiny_config(**options, **{"parallel.fsdp": 2, "parallel.tensor": 4})  # rows are spread over two
        with values.unlocked():
            values.phases = phases
        return values

    return make


@pytest.fixture(scope="module", autouse=True)
def no_measurement():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "measured_matmul_flops", lambda *arguments: 1e9)
        yield


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The run in one go."""
    workdir = tmp_path_factory.mktemp("phases") / "run"
    run.run_training(config(), workdir)
    return workdir


def test_shapes_and_example_numbers(config, tmp_path):
    task = tasks.create(config(), tmp_path / "run")
    first, second = task.training.phases(2)
    assert (first.shape.rows, first.shape.length, first.accumulation_steps) == (16, 16, 1)
    assert (second.shape.rows, second.shape.length, second.accumulation_steps) == (8, 32, 2)
    assert [list(first.numbers(step)) for step in range(3)] == np.arange(48).reshape(3, 16).tolist()
    assert list(second.numbers(3)) == list(range(48, 56)) and list(second.numbers(5)) == list(range(64, 72))
    batches = list(training_batches(task.training, make_mesh(task.config.parallel), 0))
    assert [batch["input_ids"].shape for batch in batches] == [(1, 16, 16)] * 3 + [(2, 4, 32)] * 3
    for step in (2, 3):  # an iterator that starts in the middle makes the same
        (resumed, *_) = training_batches(task.training, make_mesh(task.config.parallel), step)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(batches[step]))


@pytest.mark.slow
def test_rates_count_the_tokens_of_each_batch(whole):
    steps = [row for row in read_rows(whole / METRICS) if "tokens_per_second" in row]
    flops_per_token = [row["model_flops_per_second"] / row["tokens_per_second"] for row in steps]
    model, share = from_dict(Config(), get_config(str(whole)).to_dict()).model, 0.15
    expected = [flops_per_token_of(model, length, share) for length in (16, 16, 16, 32, 32, 32)]
    np.testing.assert_allclose(flops_per_token, expected, rtol=1e-6)


def test_an_export_says_what_it_was_trained_on(whole):
    encoder = bert_jax.load(whole)
    card = model_card(whole, encoder, "BertForPreTraining", 10)
    assert "- steps: up to 3: 16 sequences of 16 tokens each; up to 6: 8 sequences of 32 tokens each\n" in card
    assert "sequence_length" not in card


@pytest.mark.parametrize("stop_after", [2, 3, 4])
def test_resumed_on_both_sides_of_the_border(config, whole, stop_after, tmp_path, monkeypatch):
    asked = iter([False] * stop_after + [True])
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(run.hosts, "stop_signal", lambda: type("Stop", (), {"requested": lambda self: next(asked)})())
        run.run_training(config(), tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert [phase["until_step"] for phase in saved["phases"]] == [3, 6]
    run.run_training(get_config(str(tmp_path / "run")), tmp_path / "run")  # the folder alone says how to go on
    ours, theirs = ([row["loss"] for row in rows(folder) if "loss" in row] for folder in (tmp_path / "run", whole))
    assert ours == theirs and len(ours) == 6


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (({"until_step": 3},), "phases: until_step is 3, and train.num_steps=6; let the last phase"),
        (
            ({"until_step": 4}, {"until_step": 4}, {"until_step": 6}),
            "4, 4, 6; each phase must end after the one before it",
        ),
        (
            ({"until_step": 6, "batch_size": 13},),
            r"phases\[0\].batch_size=13 does not divide into 1 microbatches over 2",
        ),
        (({"until_step": 6, "sequence_length": 64},), r"phases\[0\].sequence_length=64 exceeds the position table"),
        (({"until_step": 6, "batch_size": -3},), r"config.phases\[0\]: batch_size=-3 must not be negative"),
        (({"until_step": 6, "corpus": "nowhere"},), "nowhere"),
        (({"until_step": 6, "length": 16},), r"config.phases\[0\].length: no such option"),
        (({"until_step": "6"},), r"config.phases\[0\].until_step='6': must be of type int"),
    ],
)
def test_phases_that_cannot_be(config, tmp_path, phases, message):
    with pytest.raises(UserError, match=message):
        run.run_training(config(phases), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_complete_run_with_another_batch_size(config, whole, tmp_path, caplog):
    workdir = shutil.copytree(whole, tmp_path / "run")
    values = config()
    with values.unlocked():
        values.train.batch_size = 16
    run.run_training(values, workdir)
    assert "step 6 begins with example 96 instead of 72, so examples 72 to 95 are skipped" in caplog.text


def test_fewer_steps_than_are_done(config, whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    values = config(({"until_step": 3},))
    with values.unlocked():
        values.train.num_steps = 3
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"train.num_steps=3: the run has done 6 steps; set it to more"):
        run.run_training(values, workdir)
    assert (workdir / "config.json").read_bytes() == before


def test_a_batch_size_that_no_phase_has(config, tmp_path, caplog):
    message = "train.batch_size=8 has no effect: each phase has its own"
    last = {"until_step": 6, "batch_size": 32}
    for phases, has_no_effect in (((PHASES[0], last), True), ((PHASES[0], last | {"batch_size": 8}), False)):
        caplog.clear()
        tasks.create(config(phases), tmp_path / "run")
        assert (message in caplog.messages) == has_no_effect


@pytest.mark.slow
def test_a_warmup_that_is_longer_than_its_steps(tiny_config, tmp_path, caplog):
    phases = ({"until_step": 2, "schedule": "constant", "warmup_steps": 2}, {"until_step": 4})
    for number, (options, is_too_long) in enumerate(
        (
            ({"optimizer.warmup_steps": 5}, True),
            ({"optimizer.warmup_steps": 4}, False),
            ({"phases": phases}, False),
            ({"phases": (phases[0] | {"warmup_steps": 3}, phases[1])}, True),
        )
    ):
        caplog.clear()
        run.run_training(tiny_config(**{"train.num_steps": 4, **options}), tmp_path / f"{number}")
        assert ("the learning rate does not reach its peak" in caplog.text) == is_too_long, options


def test_phases_that_go_on_later_change_nothing_of_before(config, whole, tmp_path, caplog):
    workdir = shutil.copytree(whole, tmp_path / "run")
    first, last = json.loads((workdir / "config.json").read_text())["phases"]
    values = config((first, last | {"until_step": 8}))
    with values.unlocked():
        values.train.num_steps = 8
    run.run_training(values, workdir)
    assert "those of the steps up to here stay the same" in caplog.text
    assert "'until_step': 8" in caplog.text and "'share': 0.0" not in caplog.text, "only what is set is shown"
    assert [row["step"] for row in rows(workdir) if "loss" in row] == [*range(1, 9)]


@pytest.mark.slow
def test_a_run_from_before_there_were_phases_goes_on(tiny_config, tmp_path):
    run.run_training(tiny_config(**{"train.num_steps": 2}), tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for new in ("phases", "init_layers", "init_growth"):
        del config[new]
    for new in ("mixture", "eval_corpora", "eval_origin"):
        del config["data"][new]
    for name in ("rtd", "distillation"):
        del config["options"][name]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    run.run_training(tiny_config(**{"train.num_steps": 3}), tmp_path / "run")
    assert [row["step"] for row in rows(tmp_path / "run") if "loss" in row] == [1, 2, 3]


@pytest.mark.slow
def test_batch_size_and_accumulation_may_change_together(tiny_config, tmp_path, caplog):
    """Though the batch size of before does not divide into the microbatches of now."""
    mesh = {"parallel.fsdp": 2, "parallel.tensor": 4}
    run.run_training(tiny_config(**mesh, **{"train.num_steps": 2, "train.batch_size": 10}), tmp_path / "run")
    changes = {"train.batch_size": 16, "train.accumulation_steps": 4}
    run.run_training(tiny_config(**mesh, **changes), tmp_path / "run")
    assert "step 2 begins with example 32 instead of 20" in caplog.text


def test_a_single_phase_is_the_run_itself(tiny_config, tmp_path):
    values = tiny_config()
    (phase,) = tasks.create(values, tmp_path).training.phases(8)
    assert (phase.until_step, phase.shape.rows, phase.shape.length, phase.first_example) == (4, 8, 32, 0)
    assert from_dict(Config(), values.to_dict()).phases == ()

"""What a phase can change beside its shape: mask rate, learning rate, rotary base, corpora; in shares of the steps, too."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax import run
from bert_jax.config import from_dict
from bert_jax.conversion.model_card import model_card
from bert_jax.data.corpus.prepare import prepare
from bert_jax.errors import UserError
from bert_jax.run_folder.folder import get_config
from bert_jax.tasks import base as tasks
from bert_jax.tasks.common.phases import PhaseConfig, batch_warmup, with_steps
from bert_jax.tasks.pretraining import Config
from bert_jax.train.loop import Stopped
from bert_jax.trained import load_predictor, run_evaluation
from tests.running import rows

PHASES = (
    {"share": 0.5, "mlm_probability": 0.4, "mlm_probability_end": 0.1, "rope_theta": 100.0},
    {"share": 0.25, "schedule": "constant", "learning_rate": 5e-4},
    {"share": 0.25, "schedule": "sqrt", "mlm_probability": 0.05},
)
ROPE = {"model.positions": "rope", "model.rope_theta": 10_000.0, "model.initializer_range": 0.3}


@pytest.fixture(scope="module", autouse=True)
def no_measurement():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "measured_matmul_flops", lambda *arguments: 1e9)
        yield


@pytest.fixture(scope="module")
def other_corpus(documents, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("other") / "general"
    texts = documents[: len(documents) // 2]
    prepare(texts, tokenizer, folder, source="tests", held_out_fraction=0.15, shard_megabytes=0.03)
    return folder


@pytest.fixture(scope="module")
def config(tiny_config, other_corpus):
    def make(phases=PHASES, **options):
        every = {"train.num_steps": 8, "train.eval_every": 4, "checkpoint.every": 4, "objectives": ("mlm",)}
        values = tiny_config(**every | ROPE | options)
        with values.unlocked():
            values.phases = phases
        return values

    mixed = (PHASES[0] | {"mixture": (f"0.5:{other_corpus}",)}, *PHASES[1:])
    return lambda phases=mixed, **options: make(phases, **options)


def test_one_part_needs_no_tuple():
    of_tuples = from_dict(Config(), {"phases": ({"until_step": 3, "mixture": ("0.5:a", "0.2:b")},)})
    assert from_dict(Config(), {"phases": {"until_step": 3, "mixture": "0.5:a,0.2:b"}}) == of_tuples
    with pytest.raises(UserError, match=r"config.phases\[0\]='abc': must be a group of options"):
        from_dict(Config(), {"phases": "abc"})


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("phases") / "run"
    run.run_training(config(), workdir)
    return workdir


def test_shares_become_steps():
    phases = with_steps([PhaseConfig(share=0.9), PhaseConfig(share=0.1)], 1000)
    assert [phase.until_step for phase in phases] == [900, 1000] and not any(phase.share for phase in phases)
    thirds = with_steps([PhaseConfig(share=1 / 3)] * 3, 10)
    assert [phase.until_step for phase in thirds] == [3, 7, 10]
    rounded = with_steps([PhaseConfig(share=share) for share in (0.3333333, 0.3333333, 0.3333328)], 1_000_000)
    assert [phase.until_step for phase in rounded] == [333_334, 666_667, 1_000_000]
    ramp = batch_warmup(PhaseConfig(share=0.2, sequence_length=64, batch_size=64), 10, 4, 8)
    assert [phase.batch_size for phase in ramp] == [8, 32, 48, 64]
    assert {(phase.share, phase.sequence_length) for phase in ramp} == {(0.05, 64)}


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (({"share": 0.9}, {"share": 0.2}), r"their shares are 0.9 \+ 0.2 = 1.1 of the steps; they must add up to 1"),
        (({"share": 0.9}, {"until_step": 8}), "some have a share and some until_step; use one of them for all"),
        (({"share": -0.5}, {"share": 1.5}), r"phases\[0\]: share=-0.5 must be from 0 to 1"),
        (({"share": 0.01}, {"share": 0.99}), "a share of 0.01 of 8 steps is less than one step; use more steps"),
        (({"share": 1.0, "mlm_probability": 1.0},), "phases: mlm_probability=1.0 must be above 0 and below 1"),
        (({"share": 1.0, "learning_rate": 1e-3},), "learning_rate and warmup_steps of a phase need its schedule"),
        (({"share": 1.0, "schedule": "sqr"},), "the learning rate of steps 0 to 8: schedule='sqr' is not one of"),
        (({"share": 1.0, "mixture": ("0.5:nowhere",)},), "nowhere"),
        (({"share": 1.0, "rope_theta": -1.0},), "rope_theta=-1.0 must not be negative"),
        (
            ({"share": 1.0, "rope_theta": 50.0},),
            "model.rope_theta=10000.0 is not that of the last phase, 50.0; set --config",
        ),
    ],
)
def test_phases_that_cannot_be(config, tmp_path, phases, message):
    with pytest.raises(UserError, match=message):
        run.run_training(config(phases), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.positions": "learned"}, "rope_theta is for model.positions='rope', not 'learned'"),
        ({"options.mlm.mlm_probability_end": 0.1}, "options.mlm.mlm_probability_end would begin anew in each phase"),
        ({"data.masking": "static"}, "keeps the masks of an example, so mlm_probability_end cannot change them"),
    ],
)
def test_options_that_contradict_phases(config, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run.run_training(config(**options), tmp_path / "run")


@pytest.mark.slow
def test_fine_tuning_takes_the_rotary_base_of_the_checkpoint(whole, tmp_path):
    assert tasks.model_of_checkpoint(whole).rope_theta == 10_000.0
    early = shutil.copytree(whole, tmp_path / "early")
    shutil.rmtree(early / "checkpoints" / "8")
    assert tasks.model_of_checkpoint(early).rope_theta == 100.0
    assert tasks.model_of_run(early).rope_theta == 10_000.0, "to resume it"


def test_mask_rates(config, tmp_path):
    """40 to 10% of 32 tokens over four steps of 8 rows, then the run's 15%, then 5%; evaluation always has the run's."""
    task = tasks.create(config(), tmp_path / "none")
    first, second, third = task.training.phases(1)
    counts = [task.training.batch(first, np.arange(8), step)["mlm_weights"].sum(axis=1) for step in range(4)]
    expected = np.round((0.4 - 0.3 * np.arange(0, 32, 2) / 32) * 32)  # of the two corpora in turn
    np.testing.assert_array_equal(np.concatenate(counts), np.repeat(expected, 2))
    for phase, step, number in ((second, 4, 5), (second, 5, 5), (third, 6, 2), (third, 7, 2)):
        batch = task.training.batch(phase, np.arange(8), step)
        assert (batch["mlm_weights"].sum(axis=1) == number).all()
    held_out = next(task.evaluator.batches(np.arange(8), 8))
    assert held_out["mlm_weights"].sum(axis=1).max() == 5
    assert [task.training.shares(step)[1] for step in (0, 3, 4, 7)] == [0.25, 0.25, 0.15, 0.05]


def test_a_phase_with_a_corpus_has_its_own_mixture(config, corpus_dir, other_corpus, tmp_path):
    own = f"0.25:{corpus_dir}"
    phases = ({"share": 0.5, "corpus": str(other_corpus)}, {"share": 0.25}, {"share": 0.25, "mixture": (own,)})
    values = config(phases, **{"data.mixture": (f"0.5:{other_corpus}",)})
    resolved = tasks.create(values, tmp_path / "run").config.resolved_phases
    assert [phase.mixture for phase in resolved] == [(), (f"0.5:{other_corpus}",), (own,)]


def test_learning_rates(whole):
    """Two steps of warm-up to 1e-3 and BERT's decay; then a constant rate; then 1e-3 * (1 - sqrt(progress))."""
    rates = [row["learning_rate"] for row in rows(whole) if "learning_rate" in row]
    expected = [0, 0.5e-3, 1e-3 * (1 - 2 / 8), 1e-3 * (1 - 3 / 8), 5e-4, 5e-4, 1e-3, 1e-3 * (1 - 0.5**0.5)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_the_model_card_has_the_rates_of_phases(whole):
    assert (
        "- steps: up to 4: 8 sequences of 32 tokens each; up to 6: 8 sequences of 32 tokens each, learning rate 0.0005, "
        "constant; up to 8: 8 sequences of 32 tokens each, learning rate 0.001, sqrt\n"
    ) in model_card(whole, bert_jax.load(whole), "BertForMaskedLM", 10)


def test_each_checkpoint_has_the_rotary_base_it_was_trained_with(whole, tmp_path):
    assert bert_jax.load(whole, 4).model.config.rope_theta == 100.0
    assert bert_jax.load(whole, 8).model.config.rope_theta == bert_jax.load(whole).model.config.rope_theta == 10_000.0
    values = get_config(str(whole))
    task, _ = load_predictor(values, whole, 4)
    assert task.losses.model.config.rope_theta == 100.0
    during = {row["step"]: row["eval/loss"] for row in rows(whole) if "eval/loss" in row}
    afterwards = run_evaluation(values, whole, [4, 8], tmp_path / "evaluations")
    assert {step: row["loss"] for step, row in afterwards.items()} == pytest.approx(during, rel=1e-6)
    with values.unlocked():
        values.phases = ()
    other = run_evaluation(values, whole, [4], tmp_path / "evaluations")[4]["loss"]
    assert abs(other - during[4]) > 1e-6, "the base makes a difference"


@pytest.mark.parametrize("stop_after", [3, 4, 7])
def test_resumed_in_any_phase(config, whole, stop_after, tmp_path, monkeypatch):
    asked = iter([False] * stop_after + [True])
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(run.hosts, "stop_signal", lambda: type("Stop", (), {"requested": lambda self: next(asked)})())
        run.run_training(config(), tmp_path / "run")
    run.run_training(get_config(str(tmp_path / "run")), tmp_path / "run")
    ours, theirs = ([row["loss"] for row in rows(folder) if "loss" in row] for folder in (tmp_path / "run", whole))
    assert ours == theirs and len(ours) == 8
    jax.tree.map(np.testing.assert_array_equal, bert_jax.load(tmp_path / "run").params, bert_jax.load(whole).params)


def test_the_config_of_a_run_says_steps(whole):
    config = from_dict(Config(), get_config(str(whole)).to_dict())
    assert [phase.until_step for phase in config.phases] == [4, 6, 8] and not any(
        phase.share for phase in config.phases
    )
    assert (
        config.model_at(3) == dataclasses.replace(config.model, rope_theta=100.0) and config.model_at(4) == config.model
    )

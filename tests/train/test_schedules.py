"""Learning rates against their formulas, step by step; pieces of a run with a rate of their own."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.errors import UserError
from bert_jax.train.optimizers import OptimizerConfig, make_optimizer
from bert_jax.train.schedules import DECAYS, SCHEDULES, RatePiece, ScheduleConfig, learning_rate

PEAK, WARMUP, TOTAL, DECAY = 2e-3, 10, 50, 15
OTHERS = [name for name in SCHEDULES if name != "wsd"]
CONFIG = ScheduleConfig(learning_rate=PEAK, warmup_steps=WARMUP, power=1.7, decay_steps=DECAY)


def config_of(name: str, **changes) -> ScheduleConfig:
    return dataclasses.replace(CONFIG, schedule=name, **changes)


def rates(config: ScheduleConfig, pieces=(), total: int = TOTAL) -> np.ndarray:
    return np.array(learning_rate(config, total, pieces)(jnp.arange(TOTAL + 6)))


def closed_form(name: str, t: int, warmup: int, end: float = 0.0, total: int = TOTAL) -> float:
    if t < warmup:
        return PEAK * t / warmup
    t = min(t, total) if name != "inverse_sqrt" else t
    through = (t - warmup) / (total - warmup)
    share = {
        "constant": 1.0,
        "linear": 1 - through,
        "cosine": (1 + math.cos(math.pi * through)) / 2,
        "sqrt": 1 - math.sqrt(through),
        "polynomial": (1 - through) ** 1.7,
        "linear_from_start": 1 - t / total,
        "inverse_sqrt": math.sqrt(max(warmup, 1) / max(t, 1)),
        "wsd": 1 - math.sqrt(max(0, t - (total - DECAY)) / DECAY),
    }[name]
    return end + (PEAK - end) * share


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("warmup", "end"), [(WARMUP, 0.0), (0, 0.0), (WARMUP, 3e-4)])
def test_closed_forms(name, warmup, end):
    expected = [closed_form(name, t, warmup, end) for t in range(TOTAL + 6)]
    found = rates(config_of(name, warmup_steps=warmup, end_learning_rate=end))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-10)


@pytest.mark.parametrize("shape", DECAYS)
def test_wsd_decays_over_the_last_steps_by_its_shape(shape):
    found = rates(config_of("wsd", decay_shape=shape))
    np.testing.assert_allclose(found[WARMUP : TOTAL - DECAY + 1], PEAK, rtol=1e-6)
    alone = rates(config_of(shape, warmup_steps=0), total=DECAY)
    np.testing.assert_allclose(found[TOTAL - DECAY :], alone[: DECAY + 6], rtol=1e-5, atol=1e-10)


def test_schedules_are_those_of_transformers(torch, transformers):
    names = {
        "polynomial": ("polynomial", {"power": 1.7, "lr_end": 3e-4}),
        "inverse_sqrt": ("inverse_sqrt", {}),
        "wsd": ("warmup_stable_decay", {"num_decay_steps": DECAY, "decay_type": "1-sqrt", "min_lr_ratio": 0.0}),
        "linear": ("linear", {}),
        "cosine": ("cosine", {}),
    }
    for ours, (theirs, options) in names.items():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
        reference = transformers.get_scheduler(theirs, optimizer, WARMUP, TOTAL, scheduler_specific_kwargs=options)
        expected = []
        for _ in range(TOTAL):
            expected.append(reference.get_last_lr()[0])
            optimizer.step()
            reference.step()
        found = rates(config_of(ours, end_learning_rate=3e-4 if ours == "polynomial" else 0.0))[:TOTAL]
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-10, err_msg=ours)


def test_first_and_last_steps():
    assert rates(config_of("linear"))[0] == 0.0
    without_warmup = rates(config_of("linear", warmup_steps=0))
    assert without_warmup[0] == np.float32(PEAK), "without warm-up the first step has the full rate"
    for name in ("linear", "cosine", "linear_from_start"):
        found = rates(config_of(name))
        assert 0 < found[TOTAL - 1] < PEAK / 10, f"{name}: the last step trains, a little"
        assert (abs(found[TOTAL:]) < 1e-9).all(), f"{name} does not stay at zero"


def test_linear_from_start_drops_as_warm_up_ends():
    found = rates(config_of("linear_from_start"))
    np.testing.assert_allclose(found[WARMUP], PEAK * (1 - WARMUP / TOTAL), rtol=1e-6)
    assert found[WARMUP - 1] > found[WARMUP], "google-research/bert drops by (1 - warmup / total) here"


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_of_warm_up_only_is_finite(name):
    assert np.isfinite(rates(config_of(name), total=WARMUP)).all()


PIECES = [
    RatePiece(12, 20, 1e-3, 4, "constant"),
    RatePiece(20, 28, 5e-4, 0, "sqrt"),
    RatePiece(40, 50, 2e-4, 2, "linear"),
]


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(SCHEDULES),
    borders=st.lists(st.integers(0, TOTAL), min_size=2, max_size=6, unique=True).map(sorted),
    others=st.lists(st.sampled_from(OTHERS), min_size=3, max_size=3),
    warmup=st.integers(0, 6),
)
def test_a_piece_is_a_run_of_its_own_and_other_steps_follow_the_run(name, borders, others, warmup):
    spans = list(zip(borders[::2], borders[1::2], strict=False))
    pieces = [
        RatePiece(first, until, 1e-3, warmup, other) for (first, until), other in zip(spans, others, strict=False)
    ]
    expected = rates(config_of(name))
    for piece in pieces:
        alone = config_of(piece.schedule, learning_rate=1e-3, warmup_steps=warmup)
        length = piece.until_step - piece.first_step
        expected[piece.first_step : piece.until_step] = rates(alone, total=length)[:length]
    np.testing.assert_allclose(rates(config_of(name), pieces), expected, rtol=1e-6, atol=1e-12)


def test_the_optimizer_follows_the_pieces_and_a_change_of_rate_compiles_nothing():
    """Lion's steps are as long as the rate."""
    config = OptimizerConfig(name="lion", weight_decay=0.0, **dataclasses.asdict(config_of("cosine")))
    optimizer, rate = make_optimizer(config, TOTAL, {"w": (None,)}, PIECES), learning_rate(config, TOTAL, PIECES)

    @jax.jit
    def step(params, state, number):
        updates, state = optimizer.update({"w": jnp.ones(3)}, state, params)
        return optax.apply_updates(params, updates), state, -updates["w"], rate(number)

    params, reported, used = {"w": jnp.zeros(3)}, [], []
    state = optimizer.init(params)
    for number in range(TOTAL):
        params, state, length, reported_rate = step(params, state, jnp.int32(number))
        reported.append(float(reported_rate))
        used.append(np.asarray(length))
    assert step._cache_size() == 1
    np.testing.assert_array_equal(np.float32(reported)[:, None].repeat(3, 1), used)
    np.testing.assert_allclose(reported[12:17], np.array([0, 0.25, 0.5, 0.75, 1]) * 1e-3, rtol=1e-6)
    np.testing.assert_allclose(reported[20], 5e-4, rtol=1e-6)
    np.testing.assert_allclose(reported[30], closed_form("cosine", 30, WARMUP), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": -1.0}, "optimizer.learning_rate=-1.0 must be at least 0"),
        ({"warmup_steps": -1}, "optimizer.warmup_steps=-1 must be at least 0"),
        ({"decay_steps": -3}, "optimizer.decay_steps=-3 must be at least 0"),
        ({"end_learning_rate": -1e-5}, "optimizer.end_learning_rate=-1e-05 must be at least 0"),
        ({"power": 0.0}, "optimizer.power=0.0 must be above 0"),
        ({"decay_shape": "step"}, "optimizer.decay_shape='step' is not one of linear, cosine, sqrt, polynomial"),
    ],
)
def test_invalid_options(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ScheduleConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "pieces", "message"),
    [
        ({"schedule": "x"}, [], "optimizer.schedule='x' is not one of constant, linear, .*wsd"),
        ({"schedule": "wsd", "decay_steps": 0}, [], "optimizer.decay_steps=0 of 50 steps.*decay_steps to 1 up to 40"),
        ({"schedule": "wsd", "decay_steps": 41}, [], "optimizer.decay_steps=41 of 50 steps, 10 of them warm-up; set"),
        ({"schedule": "wsd", "warmup_steps": 50}, [], "use fewer warmup_steps"),
        ({"end_learning_rate": 1e-2}, [], "optimizer.learning_rate=0.002 is below optimizer.end_learning_rate=0.01"),
        ({}, [PIECES[0]._replace(schedule="x")], "the learning rate of steps 12 to 20: schedule='x' is not one of"),
        ({}, [PIECES[0]._replace(schedule="wsd")], "steps 12 to 20: schedule='wsd' has .*decay_steps=15 of 8 steps"),
        ({}, [PIECES[0]._replace(warmup_steps=-1)], "steps 12 to 20: warmup_steps=-1 must be at least 0"),
        ({}, [PIECES[1], PIECES[0]], "steps 12 to 20: these must be at least one step, and come after step 28"),
        ({}, [PIECES[0]._replace(until_step=12)], "steps 12 to 12: these must be at least one step"),
        ({"end_learning_rate": 1e-3}, PIECES[2:], "steps 40 to 50: learning_rate=0.0002 is below optimizer.end_learn"),
    ],
)
def test_schedules_that_do_not_fit_are_one_line(changes, pieces, message):
    with pytest.raises(UserError, match=message) as error:
        learning_rate(dataclasses.replace(CONFIG, **changes), TOTAL, pieces)
    assert "\n" not in str(error.value)

"""Learning rates against their formulas, step by step."""

import math

import numpy as np
import pytest

from bert_jax.train.optimizers import DECAYS, schedule

PEAK, WARMUP, TOTAL = 2e-3, 10, 50


def closed_form(name: str, t: int, warmup: int = WARMUP) -> float:
    if t < warmup:
        return PEAK * t / warmup
    through = (t - warmup) / (TOTAL - warmup)
    return (
        PEAK
        * {
            "constant": 1.0,
            "linear": 1 - through,
            "cosine": (1 + math.cos(math.pi * through)) / 2,
            "linear_from_start": 1 - t / TOTAL,
        }[name]
    )


@pytest.mark.parametrize("name", DECAYS)
@pytest.mark.parametrize("warmup", [WARMUP, 0])
def test_closed_forms(name, warmup):
    rate = schedule(name, PEAK, warmup, TOTAL)
    steps = range(TOTAL + 1)
    expected = [closed_form(name, t, warmup) for t in steps]
    np.testing.assert_allclose([float(rate(t)) for t in steps], expected, rtol=1e-5, atol=1e-10)


def test_first_and_last_steps():
    assert schedule("linear", PEAK, WARMUP, TOTAL)(0) == 0.0
    assert schedule("linear", PEAK, 0, TOTAL)(0) == np.float32(PEAK), "without warm-up the first step has the full rate"
    for name in ("linear", "cosine", "linear_from_start"):
        rate = schedule(name, PEAK, WARMUP, TOTAL)
        assert 0 < rate(TOTAL - 1) < PEAK / 10, f"{name}: the last step trains, a little"
        assert abs(rate(TOTAL)) < 1e-9 and abs(rate(TOTAL + 5)) < 1e-9, f"{name} does not stay at zero"


def test_linear_from_start_drops_as_warm_up_ends():
    rate = schedule("linear_from_start", PEAK, WARMUP, TOTAL)
    np.testing.assert_allclose(rate(WARMUP), PEAK * (1 - WARMUP / TOTAL), rtol=1e-6)
    assert rate(WARMUP - 1) > rate(WARMUP), "google-research/bert drops by (1 - warmup / total) here"


@pytest.mark.parametrize("name", DECAYS)
def test_a_run_of_warm_up_only_is_finite(name):
    assert np.isfinite([float(schedule(name, PEAK, 10, 10)(t)) for t in range(12)]).all()

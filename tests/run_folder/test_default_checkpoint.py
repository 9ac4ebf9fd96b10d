"""Which evaluation is the best, and when there is nothing more to gain."""

import pytest

from bert_jax.errors import UserError
from bert_jax.run_folder.default_checkpoint import Selection


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("eval/f1", [0.1, 0.3, 0.3, 0.2], 2),
        ("eval/loss", [0.4, 0.3, 0.5], 2),
        ("eval/mean_squared_error", [0.2, 0.3], 1),
        ("eval/matthews", [-0.1, -0.2], 1),
    ],
)
def test_the_first_of_the_best(metric, values, best):
    selection = Selection(metric, 0)
    found = [step for step, value in enumerate(values, 1) if selection.add(step, {metric: value})]
    assert found[-1] == best == selection.best[0] and not selection.is_over


def test_patience_counts_evaluations_without_gain_also_those_before_a_restart():
    values = [0.1, 0.3, 0.2, 0.3, 0.5]
    rows = [(step, {"eval/f1": value}) for step, value in enumerate(values, 1)]
    for known in range(4):
        selection = Selection("eval/f1", 2, rows[:known])
        over = [step for step, row in rows[known:] if (selection.add(step, row), selection.is_over)[1]]
        assert over == [4], "the gain at step 5 begins the count anew"


def test_a_score_that_is_not_measured():
    selection = Selection("eval/f1", 1, [(1, {"eval/loss": 1.0})])
    assert selection.best is None, "another metric before a restart is no mistake"
    with pytest.raises(UserError, match=r"best_metric='eval/f1' is not measured; choose one of eval/loss"):
        selection.add(1, {"eval/loss": 1.0})

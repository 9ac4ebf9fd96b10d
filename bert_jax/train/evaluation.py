"""Means over the batches of an evaluation."""

from collections.abc import Iterable
from typing import Any

import jax

from bert_jax.train.step import EvalStep
from bert_jax.train.writers.base import Row


def mean_metrics(
    eval_step: EvalStep, params: Any, frozen: Any, batches: Iterable[Any], loss_weights: dict[str, float]
) -> tuple[Row, list[dict[str, Any]]]:
    """Computes the means over batches of '<term>/<metric>', weighted by predictions, and the total 'loss'.

    Args:
      eval_step: see train/step.py, `make_eval_step`.
      params: of the model.
      frozen: parameters of the frozen models.
      batches: global batches.
      loss_weights: of each objective in the total.

    Returns:
      The means, and the outputs of each batch.
    """
    sums: Row = {}
    counts: Row = {}
    objective_of: dict[str, str] = {}
    outputs = []
    for batch in batches:
        means, normalizers, row_outputs = jax.device_get(eval_step(params, frozen, batch))
        outputs.append(row_outputs)
        in_batch = {term: float(n) for terms in normalizers.values() for term, n in terms.items()}
        objective_of |= {term: objective for objective, terms in normalizers.items() for term in terms}
        for term, number in in_batch.items():
            counts[term] = counts.get(term, 0.0) + number
        for name, mean in means.items():
            if name != "loss":
                sums[name] = sums.get(name, 0.0) + float(mean) * in_batch[name.split("/")[0]]
    row = {name: value / (counts[name.split("/")[0]] or 1.0) for name, value in sums.items()}
    loss = sum(loss_weights[objective] * row[f"{term}/loss"] for term, objective in objective_of.items())
    return {"loss": loss, **row}, outputs

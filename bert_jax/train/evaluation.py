"""Means over the batches of an evaluation."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from bert_jax.train.writers import Row


def evaluate(
    eval_step: Callable[[Any, Any], Any], params: Any, batches: Iterable[Any], loss_weights: dict[str, float]
) -> tuple[Row, list[dict[str, Any]]]:
    """Means over batches of the metrics '<objective>/<metric>', weighted by predictions, and the total 'loss'; the outputs.

    Args:
      eval_step: see train/step.py, `make_eval_step`.
      params: of the model.
      batches: global batches.
      loss_weights: of each objective in the total.
    """
    sums: Row = {}
    counts: Row = {}
    outputs = []
    for batch in batches:
        means, weights, of_rows = jax.device_get(eval_step(params, batch))
        outputs.append(of_rows)
        for name, mean in means.items():
            if name != "loss":
                sums[name] = sums.get(name, 0.0) + float(mean) * float(weights[name.split("/")[0]])
        for name, weight in weights.items():
            counts[name] = counts.get(name, 0.0) + float(weight)
    row = {name: value / (counts[name.split("/")[0]] or 1.0) for name, value in sums.items()}
    return {"loss": sum(weight * row[f"{name}/loss"] for name, weight in loss_weights.items()), **row}, outputs

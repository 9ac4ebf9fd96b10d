"""Counts the operations of a traced function: those of its matrix products, however often loops run them.

XLA's `cost_analysis` counts the body of a loop once, and programs for CPUs hide their products in calls of libraries.
"""

from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax.frozen_models import with_frozen_models
from bert_jax.parallel.mesh import batch_shards, make_mesh
from bert_jax.tasks import base as tasks
from bert_jax.train.step import Training


def config_flops(values: Any, workdir: Path) -> int:
    """Returns the operations of a training step of the run in `workdir`, or of a new one, in its first phase.

    Forward and backward pass, with what it computes again, of all models (a generator, a frozen teacher), and the optimizer.
    """
    task = tasks.create(values, workdir)
    mesh = make_mesh(task.config.parallel, jax.devices()[:1])
    with jax.set_mesh(mesh):
        losses, frozen = with_frozen_models(task, mesh, Path("no-run"))
        training = Training.of(losses, task.config, mesh)
        phase = task.training.phases(batch_shards(mesh))[0]
        leading = phase.accumulation_steps, phase.shape.rows // phase.accumulation_steps
        row = task.training.batch(phase, np.arange(1), 0)
        batch = {name: jax.ShapeDtypeStruct((*leading, *array.shape[1:]), array.dtype) for name, array in row.items()}
        traced = jax.make_jaxpr(training.step)(jax.eval_shape(training.make_state), frozen, batch)
    return product_flops(traced.jaxpr)


def product_flops(jaxpr: Any) -> int:
    """Returns the operations of the matrix products in a jaxpr: 2 for a multiplication and an addition.

    Raises:
      ValueError: products in a loop whose number of passes is not known.
    """
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * prod(equation.outvars[0].aval.shape) * prod(left[axis] for axis in contracted)
            continue
        inner = [product_flops(part) for part in _inner(equation.params)]
        if name == "while" and any(inner):
            raise ValueError("matrix products in a loop whose number of passes is not known")
        passes = equation.params["length"] if name == "scan" else 1
        total += passes * (max(inner, default=0) if name == "cond" else sum(inner))
    return total


def _inner(params: dict[str, Any]) -> list[Any]:
    """Returns the jaxprs among the parameters of an equation, alone or in a sequence."""
    values = [part for value in params.values() for part in (value if isinstance(value, tuple | list) else [value])]
    closed = [getattr(value, "jaxpr", value) for value in values]
    return [value for value in closed if hasattr(value, "eqns")]

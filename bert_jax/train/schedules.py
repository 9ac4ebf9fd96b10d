"""Learning rates by step: warm-up, then a decay named in one table."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# Share of the peak rate, from `progress` through the decay (0 at the end of warm-up, 1 at the end of the run) and
# `elapsed`, the same counted from step 0.
DECAYS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "constant": lambda progress, elapsed: jnp.ones_like(progress),
    "linear": lambda progress, elapsed: 1.0 - progress,
    "cosine": lambda progress, elapsed: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
    # google-research/bert optimization.py decays from step 0: the rate drops by (1 - warmup/total) as warm-up ends.
    "linear_from_start": lambda progress, elapsed: 1.0 - elapsed,
}


def schedule(name: str, peak: float, warmup_steps: int, num_steps: int) -> Callable[[jax.Array], jax.Array]:
    """Returns the learning rate of step t (from 0): t / warmup_steps * peak, then `peak` times the decay.

    With no warm-up the first step has the full rate.
    """
    decay = DECAYS[name]

    def learning_rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup_steps) / max(num_steps - warmup_steps, 1), 0.0, 1.0)
        elapsed = jnp.clip(step / max(num_steps, 1), 0.0, 1.0)
        warmup = step / max(warmup_steps, 1)
        return peak * jnp.where(step < warmup_steps, warmup, decay(progress, elapsed))

    return learning_rate

"""The contract of attention, and the one place that chooses an implementation of it.

Shapes: B batch, Q queries, K keys, H heads, S head size. Queries and keys are tokens of the same rows.
"""

import dataclasses
import functools
import logging
from types import ModuleType

import jax

from bert_jax.errors import UserError
from bert_jax.model.attention import chunked, cudnn, plain, splash
from bert_jax.model.attention.contract import Request, Visibility
from bert_jax.model.config import EncoderConfig
from bert_jax.parallel.mesh import platform

logger = logging.getLogger(__name__)

# Each has `attend`, and `unsupported`, which says why it cannot compute a request.
IMPLEMENTATIONS: dict[str, ModuleType] = {"plain": plain, "chunked": chunked, "cudnn": cudnn, "splash": splash}


@dataclasses.dataclass(frozen=True)
class Preference:
    """An implementation to be preferred to the ones after it, from a length on."""

    name: str
    from_length: int  # sequence length, or the root of queries x keys where the queries are some of the tokens
    from_length_local: int  # of layers that attend within a window, where all tokens are queries


# What 'auto' prefers, by platform; `plain` is the last everywhere. On CPU by time, from 2,048 tokens by memory
# (docs/benchmarks.md); on TPU by what compiled programs read and write (docs/scaling.md); on GPU a guess, since none has been
# measured.
PREFERENCES: dict[str, tuple[Preference, ...]] = {
    "cpu": (Preference("chunked", 2048, 512),),
    "gpu": (Preference("cudnn", 1, 1), Preference("chunked", 256, 256)),
    "tpu": (Preference("splash", 512, 512), Preference("chunked", 256, 256)),
}


def attend(
    q_BxQxHxS: jax.Array,
    k_BxKxHxS: jax.Array,
    v_BxKxHxS: jax.Array,
    visibility: Visibility,
    *,
    dropout_rate: float = 0.0,
    dropout_keys_B: jax.Array | None = None,
    name: str = "auto",
) -> jax.Array:
    """Returns, for each query, the mean of the values weighted by a softmax over the scores of the keys it sees.

    What padded queries return is finite but undefined: implementations differ.

    Args:
      q_BxQxHxS: queries, not yet scaled by S^-1/2.
      k_BxKxHxS: keys.
      v_BxKxHxS: values.
      visibility: who sees whom.
      dropout_rate: of the weights.
      dropout_keys_B: dropout keys of the rows; without them nothing is dropped.
      name: of the implementation, or 'auto'.

    Returns:
      [B, Q, H, S] in the dtype of the queries; the softmax is float32.

    Raises:
      UserError: the named implementation does not support this.
    """
    request = Request(
        platform=platform(),
        dtype=q_BxQxHxS.dtype.name,
        num_queries=q_BxQxHxS.shape[1],
        length=k_BxKxHxS.shape[1],
        head_size=q_BxQxHxS.shape[3],
        window=visibility.window,
        direction=visibility.direction,
        has_dropout=dropout_keys_B is not None and dropout_rate > 0,
        has_segments=visibility.segment_ids_BxK is not None,
        has_mask=visibility.segment_ids_BxK is None and visibility.attention_mask_BxK is not None,
        has_positions=visibility.positions_BxQ is not None,
    )
    chosen, reasons = choose(name, request)
    if dropout_keys_B is not None:  # in training
        log_choice(chosen, request, reasons)
    return IMPLEMENTATIONS[chosen].attend(q_BxQxHxS, k_BxKxHxS, v_BxKxHxS, visibility, dropout_rate, dropout_keys_B)


def choose(name: str, request: Request) -> tuple[str, tuple[str, ...]]:
    """Returns the name of the implementation for a request, and the reasons against those before it.

    A named one is used wherever it can be; where the queries are some of the tokens, as in the last layer, which users need not
    know, the next one that 'auto' would take replaces it.

    Raises:
      UserError: `name` is that of an implementation that does not support the request.
    """
    reasons = []
    if name != "auto":
        if not (reason := IMPLEMENTATIONS[name].unsupported(request)):
            return name, ("set by model.attention",)
        if not request.has_positions:
            able = [other for other, module in IMPLEMENTATIONS.items() if not module.unsupported(request)]
            remedy = f"set --config.model.attention to {', '.join(['auto', *able[:-1]])} or {able[-1]}"
            raise UserError(f"model.attention={name} {reason}; {remedy}")
        reasons.append(f"{name} {reason}")
    is_local = request.window is not None and not request.has_positions
    for preference in PREFERENCES[request.platform]:
        shortest = preference.from_length_local if is_local else preference.from_length
        if reason := IMPLEMENTATIONS[preference.name].unsupported(request):
            reasons.append(f"{preference.name} {reason}")
        elif request.num_queries * request.length < shortest**2:
            reasons.append(f"{preference.name} is for lengths from {shortest}")
        else:
            return preference.name, tuple(reasons)
    return "plain", tuple(reasons)


@functools.cache
def log_choice(name: str, request: Request, reasons: tuple[str, ...]) -> None:
    """Logs which implementation is used, once in a process."""
    kind = "global" if request.window is None else f"local (window {request.window})"
    queries = f", {request.num_queries} queries" if request.has_positions else ""
    why = f" ({'; '.join(reasons)})" if reasons else ""
    logger.info("attention: %s for %s layers, length %d%s%s", name, kind, request.length, queries, why)


def check_attention(config: EncoderConfig, length: int, has_segments: bool = False) -> None:
    """Checks, before anything is compiled, that the implementation which a config names can train it on rows of a length.

    Raises:
      UserError: it does not support the platform of the mesh, or an option of the config.
    """
    chosen_for(config, length, platform(), has_segments)


def chosen_for(config: EncoderConfig, length: int, platform: str, has_segments: bool = False) -> dict[str, str]:
    """Returns what trains the 'global' and the 'local' layers of a config on a platform; raises as `check_attention`."""
    names = {}
    for window in {config.window(layer) for layer in range(config.num_layers)}:
        request = Request(
            platform=platform,
            dtype=config.dtype,
            num_queries=length,
            length=length,
            head_size=config.head_size,
            window=window,
            direction=config.attention_direction,
            has_dropout=config.attention_dropout > 0,
            has_segments=has_segments,
        )
        names["global" if window is None else "local"], _ = choose(config.attention, request)
    return dict(sorted(names.items()))

"""From a config to plain arrays and back: `Model` describes an encoder with heads; its parameters are nested dicts."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from bert_jax.model.config import EncoderConfig
from bert_jax.model.encoder import Encoder, EncoderOutput

Params = dict[str, Any]  # nested dicts of arrays
ModuleFactory = Callable[..., nnx.Module]  # of (config, rngs=rngs)


class EncoderWithHeads(nnx.Module):
    """An encoder and, by name, the heads of its objectives."""

    def __init__(self, config: EncoderConfig, heads: Mapping[str, ModuleFactory], rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs)
        self.heads = nnx.Dict({name: make(config, rngs=rngs) for name, make in heads.items()})

    def all_logits(self, output: EncoderOutput, attention_mask_BxL: jax.Array) -> dict[str, jax.Array]:
        """Computes the logits of every head that has a method `logits` (see model/heads.py).

        Args:
          output: of the encoder, at all positions, with one example per row.
          attention_mask_BxL: 0 for padding.
        """
        heads: Mapping[str, Any] = self.heads
        return {
            name: head.logits(self.encoder, output, attention_mask_BxL)
            for name, head in heads.items()
            if hasattr(type(head), "logits")
        }


@dataclasses.dataclass(frozen=True, eq=False)  # equal only to itself, so that jitted functions can be given one
class Model:
    """Structure, shapes and logical axes of an encoder with heads, without any array."""

    config: EncoderConfig
    heads: Mapping[str, ModuleFactory]
    graphdef: Any
    abstract: Params  # of jax.ShapeDtypeStruct
    axes: Params  # of tuples of logical axis names, as long as the array's shape

    @classmethod
    def build(cls, config: EncoderConfig, heads: Mapping[str, ModuleFactory]) -> "Model":
        module = nnx.eval_shape(lambda: EncoderWithHeads(config, heads, nnx.Rngs(0)))
        graphdef, variables = nnx.split(module)
        return cls(config, heads, graphdef, nnx.to_pure_dict(variables), logical_axes(variables))

    def init(self, key: jax.Array) -> Params:
        """Returns initial parameters."""
        return nnx.to_pure_dict(nnx.state(EncoderWithHeads(self.config, self.heads, nnx.Rngs(key))))

    def bind(self, params: Params) -> EncoderWithHeads:
        """Returns the modules over `params`, to be called inside any jax transformation."""
        return nnx.merge(self.graphdef, nnx.State(params))


def logical_axes(variables: nnx.State) -> Params:
    """Returns the axes of each variable; weights stacked over layers have one more than their module named."""

    def axes(variable: nnx.Variable) -> tuple[str | None, ...]:
        names = variable.get_metadata("axes")
        stacked = len(variable.shape) - len(names)
        return ("layers",) * stacked + names

    return nnx.to_pure_dict(jax.tree.map(axes, variables, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)))


def count(params: Params) -> int:
    """Returns the number of parameters in a tree of (abstract) arrays."""
    return sum(array.size for array in jax.tree.leaves(params))

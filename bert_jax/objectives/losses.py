"""Several objectives over one model: their modules, and the sum of their losses.

Shapes: A microbatches, B batch, L length, P positions, K examples in a row.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.model.build import EncoderWithHeads, Model, ModuleFactory, Params
from bert_jax.model.config import EncoderConfig
from bert_jax.model.encoder import EncoderOutput
from bert_jax.model.layers import split, take_positions
from bert_jax.objectives.base import Batch, DeviceObjective, encoder_inputs

Normalizers = dict[str, dict[str, jax.Array]]  # by objective and term
FrozenParams = dict[str, dict[str, Params]]  # by objective and name
# What the encoder reads of a batch. Objectives whose batches hold the same arrays here share one pass.
ENCODER_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "segment_ids", "starts")


def build_model(config: EncoderConfig, objectives: Mapping[str, DeviceObjective]) -> Model:
    """Returns the encoder with the modules of all objectives.

    Raises:
      ValueError: two objectives name a module alike.
    """
    modules: dict[str, ModuleFactory] = {}
    for name, objective in objectives.items():
        if taken := modules.keys() & objective.modules.keys():
            raise ValueError(f"objective {name}: another one has a module of the name {taken.pop()!r}")
        modules |= objective.modules
    return Model.build(config, modules)


def normalizers_of(objectives: Mapping[str, DeviceObjective], batch: Batch) -> Normalizers:
    """Returns the normalizers of each objective for a batch, of arrays [B, ...] or [A, B, ...].

    Raises:
      ValueError: two objectives name a term alike.
    """
    by_objective = {name: _by_term(name, objective.normalizer(batch)) for name, objective in objectives.items()}
    terms = [term for terms in by_objective.values() for term in terms]
    if len(set(terms)) < len(terms):
        raise ValueError(f"terms {', '.join(terms)}: two objectives name a term alike")
    return by_objective


@dataclasses.dataclass(frozen=True)
class Losses:
    """Objectives by name over one model."""

    model: Model
    objectives: Mapping[str, DeviceObjective]
    frozen: Mapping[str, Mapping[str, Model]] = dataclasses.field(default_factory=dict)  # as in `FrozenParams`

    def for_model(self, config: EncoderConfig) -> "Losses":
        """Returns the same losses over a model whose parameters are the same and whose other options are those of `config`."""
        if config == self.model.config:
            return self
        return dataclasses.replace(self, model=Model.build(config, self.model.heads))

    def normalizers(self, batch: Batch) -> Normalizers:
        """Returns the normalizers of each objective (see `normalizers_of`)."""
        return normalizers_of(self.objectives, batch)

    def compute(
        self,
        params: Params,
        frozen: FrozenParams,
        batch: Batch,
        normalizers: Normalizers,
        keys_B: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        """Computes the loss of a (micro)batch, and metrics, each already divided by the normalizers of the whole batch.

        Args:
          params: of `model`.
          frozen: parameters of the models in `self.frozen`.
          batch: arrays [B, ...]; with segment_ids, position_ids [B, L] and starts [B, K] rows of several examples.
          normalizers: the result of `normalizers` on the whole batch, of which `batch` may be a part.
          keys_B: random keys of the rows; None for evaluation, without dropout.

        Returns:
          The loss to differentiate, {'loss', '<term>/loss', '<term>/<metric>'}, and the objectives' outputs.
        """
        models = self.model.bind(params)
        is_training, num_rows = keys_B is not None, len(batch["input_ids"])
        if keys_B is None:
            numbers_B = batch.get("example_numbers", jnp.arange(num_rows))
            keys_B = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(numbers_B)
        sampling_keys_B, *keys = split(keys_B, 1 + 2 * len(self.objectives))
        prepared = self._prepared(models, frozen, batch, sampling_keys_B, is_training)
        total = jnp.zeros(())
        metrics, outputs = {}, dict[str, jax.Array]()
        for names in encoder_passes(prepared):
            # From the end of the list: first the encoder's, then one for each loss.
            dropout_keys = [keys.pop() if is_training else None for _ in range(1 + len(names))]
            passed = self._encoded(models, {name: prepared[name] for name in names}, dropout_keys[0])
            for name, output, dropout_keys_B in zip(names, passed, dropout_keys[1:], strict=True):
                objective = self.objectives[name]
                losses = _by_term(name, objective.loss(models, output, prepared[name], dropout_keys_B))
                for term, loss in losses.items():
                    normalizer = normalizers[name][term]
                    divisor = jnp.where(normalizer > 0, normalizer, 1.0)  # a batch without any prediction has loss 0
                    total += objective.weight_of(term) * loss.sum / divisor
                    metrics[f"{term}/loss"] = loss.sum / divisor
                    metrics |= {f"{term}/{metric}": value / divisor for metric, value in loss.metrics.items()}
                    outputs |= loss.outputs
        return total, {"loss": total, **metrics}, outputs

    def derived(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the metrics that are functions of means over the whole data (see objectives/base.py)."""
        return {
            name: value for objective in self.objectives.values() for name, value in objective.derived(means).items()
        }

    def _prepared(
        self, models: EncoderWithHeads, frozen: FrozenParams, batch: Batch, keys_B: jax.Array, is_training: bool
    ) -> dict[str, Batch]:
        """Returns the batch of each objective."""
        prepared = {}
        for (name, objective), keys in zip(self.objectives.items(), split(keys_B, len(self.objectives)), strict=True):
            params = jax.lax.stop_gradient(frozen.get(name, {}))
            bound = {of: model.bind(params[of]) for of, model in self.frozen.get(name, {}).items()}
            sampling_keys_B, dropout_keys_B = split(keys, 2)
            dropout = dropout_keys_B if is_training else None
            prepared[name] = objective.prepare(models, bound, batch, sampling_keys_B, dropout)
        return prepared

    def _encoded(
        self, models: EncoderWithHeads, batches: Mapping[str, Batch], keys_B: jax.Array | None
    ) -> list[EncoderOutput]:
        """Returns the output for each of some objectives whose batches are the same to the encoder, of one pass."""
        batch = next(iter(batches.values()))
        nowhere_Bx0 = batch["input_ids"][:, :0]
        read = [
            nowhere_Bx0 if (positions := self.objectives[name].positions(batch_of)) is None else positions
            for name, batch_of in batches.items()
        ]
        distinct = {id(positions): positions for positions in read if not isinstance(positions, str)}
        reads_all = any(isinstance(positions, str) for positions in read)
        output = models.encoder(
            batch["input_ids"],
            **encoder_inputs(batch),
            keys_B=keys_B,
            positions_BxP=None if reads_all else jnp.concatenate([*distinct.values()], axis=1),
            all_hidden_states=any(self.objectives[name].reads_all_layers for name in batches),
        )
        states = output.last_hidden_state
        if reads_all:
            parts = [take_positions(states, positions) for positions in distinct.values()]
        else:
            parts = jnp.split(states, np.cumsum([positions.shape[1] for positions in distinct.values()])[:-1], axis=1)
        read_states = dict(zip(distinct, parts, strict=True))
        return [output._replace(last_hidden_state=read_states.get(id(positions), states)) for positions in read]


def encoder_passes(batches: Mapping[str, Batch]) -> list[list[str]]:
    """Returns the names of the objectives in groups whose batches hold the same inputs of the encoder.

    The same are the very arrays that `prepare` got and returned, by identity.
    """
    passes: dict[tuple[int, ...], list[str]] = {}
    for name, batch in batches.items():
        passes.setdefault(tuple(id(batch.get(field)) for field in ENCODER_INPUTS), []).append(name)
    return list(passes.values())


def _by_term(name: str, value: Any) -> dict[str, Any]:
    """Returns the terms of an objective, most of which have one, of the objective's name."""
    return value if isinstance(value, dict) else {name: value}

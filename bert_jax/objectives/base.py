"""What an objective is, how the named ones are found, and how several share one pass of the encoder.

An objective is one file of this folder: an `Options` dataclass and an `Objective` class that implements the protocol below.
Naming the file in `config.objectives` is all it takes. Losses are sums with normalizers known from the batch, so the step
divides once, globally, and gradients do not depend on the number of devices or microbatches.

Shapes: B batch, L length, D hidden_size.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bert_jax.objectives
from bert_jax.errors import UserError
from bert_jax.model.build import EncoderWithHeads, Model, ModuleFactory, Params
from bert_jax.model.config import EncoderConfig
from bert_jax.model.encoder import EncoderOutput

# One example: input_ids, attention_mask, token_type_ids [L]; example_weights, a scalar, 0 where a row only fills a batch;
# and the labels of its objectives.
Example = dict[str, Any]
Batch = dict[str, jax.Array]  # examples stacked along a first axis


@dataclasses.dataclass(frozen=True)
class BaseOptions:
    weight: float = 1.0  # of this objective in the sum of losses

    def __post_init__(self):
        if self.weight < 0:
            raise ValueError(f"weight={self.weight} must not be negative")


class Vocabulary(Protocol):
    """What objectives need to know of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def mask_id(self) -> int: ...

    @property
    def special_ids(self) -> np.ndarray:
        """Sorted ids [S] of the tokens that stand for no text."""

    @property
    def word_starts(self) -> np.ndarray:
        """bool [V], false for pieces that continue a word."""


class Segments(Protocol):
    """Two consecutive pieces of one document, before they are joined to an example."""

    a: np.ndarray
    b: np.ndarray  # empty when the document ended with `a`

    def from_another_document(self, rng: np.random.Generator) -> np.ndarray:
        """Text of another document, as long as fits next to `a`; empty when the corpus has no other."""


class Loss(NamedTuple):
    """Sums over a (micro)batch, to be divided by their normalizer over the whole batch."""

    sum: jax.Array
    metrics: dict[str, jax.Array]
    outputs: dict[str, jax.Array] = {}  # of each row, e.g. logits [B, ...], for scores that are no sums  # noqa: RUF012


def classification_loss(logits_BxC: jax.Array, labels_B: jax.Array, weights_B: jax.Array) -> Loss:
    """Returns the cross-entropy of one label for each example."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits_BxC, labels_B)
    correct = logits_BxC.argmax(-1) == labels_B
    return Loss((losses * weights_B).sum(), {"accuracy": (correct * weights_B).sum()})


def all_positions(batch: Batch) -> jax.Array:
    """Returns the positions [B, L] of all tokens, for objectives that read every hidden state."""
    return jnp.broadcast_to(jnp.arange(batch["input_ids"].shape[1]), batch["input_ids"].shape)


class LossTerm(Protocol):
    """The half of an objective that runs on the devices; fine-tuning has this half alone."""

    @property
    def options(self) -> Any:
        """This objective's `Options`, or at least `BaseOptions`."""

    @property
    def modules(self) -> Mapping[str, ModuleFactory]:
        """Trained modules in addition to the encoder, by name: a head, a generator. They are in `models.heads`.

        A module with a method `logits` is a head that `bert_jax.load` computes (see model/heads.py).
        """

    def normalizer(self, batch: Batch) -> jax.Array | dict[str, jax.Array]:
        """Returns what the sums of `loss` are divided by, from a whole batch as `corrupt` left it: the number of predictions.

        Training fails at a batch where it is 0 (see train/loop.py).
        """

    def positions(self, batch: Batch) -> jax.Array | None:
        """Returns the positions [B, P] whose last hidden states `loss` reads; None if it reads the pooled state alone."""

    def loss(
        self, models: EncoderWithHeads, output: EncoderOutput, batch: Batch, key: jax.Array | None
    ) -> Loss | dict[str, Loss]:
        """Returns the sums of the loss and of the metrics over a batch.

        Args:
          models: the encoder and the modules of all objectives.
          output: of the encoder, with the last hidden states [B, P, D] at this objective's `positions`.
          batch: arrays [B, ...], as `prepare` returned them.
          key: dropout key, None in evaluation.

        Returns:
          One loss, or several by name, which are added; then `normalizer` returns as many, by the same names.
        """


class Objective(LossTerm, Protocol):
    """A pretraining objective: what it does to a batch on the host, its models and its loss."""

    options: Any = None
    modules: ClassVar[Mapping[str, ModuleFactory]] = MappingProxyType({})
    makes_pairs: ClassVar[bool] = False  # decides what the second segment is; at most one such objective in a run
    # Run or model folders of models that are read and not trained, by name, e.g. a teacher. They are loaded once, sharded, an
    # argument of the jitted step; never differentiated, saved, averaged or counted.
    frozen: Mapping[str, str] = MappingProxyType({})

    def pair(self, segments: Segments, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, Example]:
        """Called where `makes_pairs`: the two segments of the example, and its labels."""
        raise NotImplementedError

    def corrupt(self, example: Example, rng: np.random.Generator) -> Example:
        """The joined example with this objective's corruption and labels; always with the same shapes."""
        return example

    def prepare(
        self, models: EncoderWithHeads, frozen: Mapping[str, EncoderWithHeads], batch: Batch, key: jax.Array
    ) -> Batch:
        """Returns the batch with what models on the devices add to it before the encoder runs.

        An objective that returns other inputs of the encoder (e.g. sampled replacements) gets a pass of its own; all others
        share one.

        Args:
          models: the encoder and the modules of all objectives; gradients flow through what is computed with them.
          frozen: the models of `frozen`.
          batch: arrays [B, ...]. Do not change it; return another one.
          key: for sampling; the same for every batch of an evaluation.
        """
        return batch


def available() -> list[str]:
    """Returns the names of the objectives: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(bert_jax.objectives.__path__) if module.name != "base")


def default_options() -> dict[str, Any]:
    """Returns the `Options` of every objective by name, so that each option is present in every config."""
    return {name: _module(name).Options() for name in available()}


def load(names: tuple[str, ...], options: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Objective]:
    """Returns the named objectives.

    Raises:
      UserError: an unknown name, no name, the same name twice, or two objectives that both decide the second segment.
    """
    if not names or len(set(names)) != len(names):
        raise UserError(f"objectives={names}: name at least one of {', '.join(available())}, each once")
    for name in names:
        if name not in available():
            raise UserError(f"unknown objective '{name}'; there are {', '.join(available())}")
    objectives = {name: _module(name).Objective(options[name], vocabulary) for name in names}
    pairing = [name for name, objective in objectives.items() if objective.makes_pairs]
    if len(pairing) > 1:
        raise UserError(f"objectives {' and '.join(pairing)} both decide the second segment; keep one of them")
    return objectives


def _module(name: str):
    return importlib.import_module(f"bert_jax.objectives.{name}")


def build_model(config: EncoderConfig, objectives: Mapping[str, LossTerm]) -> Model:
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


Normalizers = dict[str, dict[str, jax.Array]]  # by objective and term
FrozenParams = dict[str, dict[str, Params]]  # by objective and name
# What the encoder reads of a batch. Objectives whose batches hold the same arrays here share one pass.
ENCODER_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "segment_ids", "starts")


@dataclasses.dataclass(frozen=True)
class Losses:
    """Objectives by name over one model."""

    model: Model
    objectives: Mapping[str, LossTerm]
    frozen: Mapping[str, Mapping[str, Model]] = dataclasses.field(default_factory=dict)  # as in `FrozenParams`

    def normalizers(self, batch: Batch) -> Normalizers:
        """Returns the normalizers of each objective for a batch, of arrays [B, ...] or [A, B, ...]."""
        return {name: _by_term(name, objective.normalizer(batch)) for name, objective in self.objectives.items()}

    def __call__(
        self, params: Params, frozen: FrozenParams, batch: Batch, normalizers: Normalizers, key: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes what training needs: `evaluate` without the outputs."""
        total, metrics, _ = self.evaluate(params, frozen, batch, normalizers, key)
        return total, metrics

    def evaluate(
        self,
        params: Params,
        frozen: FrozenParams,
        batch: Batch,
        normalizers: Normalizers,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        """Computes the loss of a (micro)batch, and metrics, each already divided by the normalizers of the whole batch.

        Args:
          params: of `model`.
          frozen: parameters of the models in `self.frozen`.
          batch: arrays [B, ...]; with segment_ids, position_ids [B, L] and starts [B, K] rows of several examples.
          normalizers: the result of `normalizers` on the whole batch, of which `batch` may be a part.
          key: random key of this (micro)batch; None for evaluation, without dropout.

        Returns:
          The loss to differentiate, {'loss', '<term>/loss', '<term>/<metric>'}, and the objectives' outputs.
        """
        models = self.model.bind(params)
        sampling_key, *keys = jax.random.split(jax.random.key(0) if key is None else key, 1 + 2 * len(self.objectives))
        prepared = self._prepared(models, frozen, batch, sampling_key)
        total = jnp.zeros(())
        metrics, outputs = {}, dict[str, jax.Array]()
        for names in encoder_passes(prepared):
            dropout_keys = [None] * (1 + len(names)) if key is None else [keys.pop() for _ in range(1 + len(names))]
            passed = self._encoded(models, {name: prepared[name] for name in names}, dropout_keys[0])
            for name, output, dropout_key in zip(names, passed, dropout_keys[1:], strict=True):
                objective = self.objectives[name]
                losses = _by_term(name, objective.loss(models, output, prepared[name], dropout_key))
                for term, loss in losses.items():
                    normalizer = normalizers[name][term]
                    divisor = jnp.where(normalizer > 0, normalizer, 1.0)  # a batch without any prediction has loss 0
                    total += objective.options.weight * loss.sum / divisor
                    metrics[f"{term}/loss"] = loss.sum / divisor
                    metrics |= {f"{term}/{metric}": value / divisor for metric, value in loss.metrics.items()}
                    outputs |= loss.outputs
        return total, {"loss": total, **metrics}, outputs

    def _prepared(
        self, models: EncoderWithHeads, frozen: FrozenParams, batch: Batch, key: jax.Array
    ) -> dict[str, Batch]:
        """Returns the batch of each objective."""
        prepared = {}
        for number, (name, objective) in enumerate(self.objectives.items()):
            if prepare := getattr(objective, "prepare", None):
                bound = {of: model.bind(frozen[name][of]) for of, model in self.frozen.get(name, {}).items()}
                prepared[name] = prepare(models, bound, batch, jax.random.fold_in(key, number))
            else:
                prepared[name] = batch
        return prepared

    def _encoded(
        self, models: EncoderWithHeads, batches: Mapping[str, Batch], key: jax.Array | None
    ) -> list[EncoderOutput]:
        """Returns the output for each of some objectives whose batches are the same to the encoder, of one pass."""
        batch = next(iter(batches.values()))
        nowhere_Bx0 = batch["input_ids"][:, :0]
        read = [
            nowhere_Bx0 if (positions := self.objectives[name].positions(batch)) is None else positions
            for name, batch in batches.items()
        ]
        output = models.encoder(
            batch["input_ids"],
            batch["attention_mask"],
            batch["token_type_ids"],
            key=key,
            positions_BxP=jnp.concatenate(read, axis=1),
            position_ids_BxL=batch.get("position_ids"),
            starts_BxK=batch.get("starts"),
        )
        borders = np.cumsum([positions.shape[1] for positions in read])[:-1]
        hidden_states = jnp.split(output.last_hidden_state, borders, axis=1)
        return [output._replace(last_hidden_state=hidden) for hidden in hidden_states]


def encoder_passes(batches: Mapping[str, Batch]) -> list[list[str]]:
    """Returns the names of the objectives in groups whose batches hold the same inputs of the encoder."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, batch in batches.items():
        groups.setdefault(tuple(id(batch.get(field)) for field in ENCODER_INPUTS), []).append(name)
    return list(groups.values())


def _by_term(name: str, value: Any) -> dict[str, Any]:
    """Returns the terms of an objective, most of which have one, of the objective's name."""
    return value if isinstance(value, dict) else {name: value}

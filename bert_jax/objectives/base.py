"""What an objective is, how the named ones are found, and how several share one pass of the encoder.

An objective is one file of this folder: an `Options` dataclass and an `Objective` class with the methods below. Naming the
file in `config.objectives` is all it takes. Losses are sums with weights known from the batch, so the step divides once,
globally, and gradients do not depend on the number of devices or microbatches.

Shapes: B batch, L length, D hidden_size.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import bert_jax.objectives
from bert_jax.errors import UserError
from bert_jax.model.build import EncoderWithHeads, Model, Params
from bert_jax.model.config import EncoderConfig
from bert_jax.model.encoder import EncoderOutput
from bert_jax.parallel.batches import HostBatch

# input_ids, attention_mask, token_type_ids [B, L]; example_weights [B], 0 where a row only fills the batch; and the labels of
# the objectives.
Batch = dict[str, jax.Array]


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


class SecondSegments(NamedTuple):
    """What the second segments of pairs are to be, bool [B]; the next text of the document where neither is set."""

    is_other_document: np.ndarray  # text of another document
    is_swapped: np.ndarray  # the next text, with the first segment after it


class Loss(NamedTuple):
    """Sums over a (micro)batch, to be divided by the objective's weight over the whole batch."""

    sum: jax.Array
    metrics: dict[str, jax.Array]
    outputs: dict[str, jax.Array] = {}  # of each row, e.g. logits [B, ...], for scores that are no sums  # noqa: RUF012


def classification_loss(logits_BxC: jax.Array, labels_B: jax.Array, weights_B: jax.Array) -> Loss:
    """Cross-entropy of one label for each example."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits_BxC, labels_B)
    correct = logits_BxC.argmax(-1) == labels_B
    return Loss((losses * weights_B).sum(), {"accuracy": (correct * weights_B).sum()})


class LossTerm(Protocol):
    """The half of an objective that runs on the devices."""

    @property
    def options(self) -> Any:
        """This objective's `Options`, or at least `BaseOptions`."""

    def head(self, config: EncoderConfig, rngs: nnx.Rngs) -> nnx.Module:
        """This objective's parameters on top of the encoder."""

    def weight(self, batch: Batch) -> jax.Array:
        """Number of predictions in a batch, from the labels alone: what the sums are divided by.

        Training fails at a batch where it is 0 (see train/loop.py).
        """

    def positions(self, batch: Batch) -> jax.Array | None:
        """The positions [B, P] whose last hidden states `loss` reads; None where it reads the pooled state alone."""

    def loss(self, model: EncoderWithHeads, output: EncoderOutput, batch: Batch, key: jax.Array | None) -> Loss:
        """Sums of the loss and of the metrics over a batch.

        Args:
          model: the encoder and the heads.
          output: of the encoder, with the last hidden states [B, P, D] at this objective's `positions`.
          batch: arrays [B, ...].
          key: dropout key, None in evaluation.
        """


class Objective(LossTerm, Protocol):
    """A pretraining objective: a loss, and what it does to a batch on the host."""

    makes_pairs: bool  # decides what the second segments are; at most one such objective in a run

    def second_segments(self, has_next: np.ndarray, keys: np.ndarray) -> SecondSegments:
        """Called where `makes_pairs`.

        Args:
          has_next: bool [B], False where the document ends with the first segment, which is then cut in two if there is to be
            no other document.
          keys: uint64 [B], of the rows' random numbers (see random_numbers.py).
        """

    def corrupt(self, batch: HostBatch, keys: np.ndarray) -> HostBatch:
        """Returns the batch with this objective's corruption and labels; the arrays that it is given do not change.

        Args:
          batch: joined rows. Where an objective makes pairs, `is_other_document` and `is_swapped` (bool [B]) say what became of
            the second segments; they do not get to the devices.
          keys: uint64 [B], of the rows' random numbers. A row must depend on itself and its key alone, and shapes on L alone.
        """


def available() -> list[str]:
    """Names of the objectives: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(bert_jax.objectives.__path__) if module.name != "base")


def default_options() -> dict[str, Any]:
    """The `Options` of every objective by name, so that each option is present in every config."""
    return {name: _module(name).Options() for name in available()}


def load(names: tuple[str, ...], options: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Objective]:
    """The named objectives.

    Raises:
      UserError: an unknown name, none or the same twice, or two that both decide the second segment.
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


@dataclasses.dataclass(frozen=True)
class Losses:
    """Objectives by name over one model; the encoder runs once for all of them."""

    model: Model
    objectives: Mapping[str, LossTerm]

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Predictions of each objective in a batch."""
        return {name: objective.weight(batch) for name, objective in self.objectives.items()}

    def __call__(
        self, params: Params, batch: Batch, weights: dict[str, jax.Array], key: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """As `evaluate`, but for the outputs: what training needs."""
        total, metrics, _ = self.evaluate(params, batch, weights, key)
        return total, metrics

    def evaluate(
        self, params: Params, batch: Batch, weights: dict[str, jax.Array], key: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        """The loss of a (micro)batch, and metrics, each already divided by the weights of the whole batch.

        Args:
          params: of `model`.
          batch: arrays [B, ...]; with position_ids [B, L] and starts [B, K] rows of several examples (see model/encoder.py).
          weights: the result of `weights` on the whole batch, of which `batch` may be a part.
          key: dropout key; None for evaluation.

        Returns:
          The loss to differentiate, {'loss', '<objective>/loss', '<objective>/<metric>'}, and the objectives' outputs.
        """
        model = self.model.bind(params)
        keys = [None] * (len(self.objectives) + 1) if key is None else jax.random.split(key, len(self.objectives) + 1)
        nowhere_Bx0 = batch["input_ids"][:, :0]
        read = [nowhere_Bx0 if (p := term.positions(batch)) is None else p for term in self.objectives.values()]
        inputs = (batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        output = model.encoder(
            *inputs,
            key=keys[0],
            positions_BxP=jnp.concatenate(read, axis=1),
            position_ids_BxL=batch.get("position_ids"),
            starts_BxK=batch.get("starts"),
        )
        hidden_states = jnp.split(output.last_hidden_state, np.cumsum([p.shape[1] for p in read])[:-1], axis=1)
        total = jnp.zeros(())
        metrics, outputs = {}, dict[str, jax.Array]()
        for (name, objective), hidden, head_key in zip(self.objectives.items(), hidden_states, keys[1:], strict=True):
            loss = objective.loss(model, output._replace(last_hidden_state=hidden), batch, head_key)
            divisor = jnp.where(weights[name] > 0, weights[name], 1.0)  # a batch without any prediction has loss 0
            total += objective.options.weight * loss.sum / divisor
            metrics[f"{name}/loss"] = loss.sum / divisor
            metrics |= {f"{name}/{metric}": value / divisor for metric, value in loss.metrics.items()}
            outputs |= loss.outputs
        return total, {"loss": total, **metrics}, outputs

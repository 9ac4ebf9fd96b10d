"""What an objective is, and how the named ones are found.

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
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

import bert_jax.objectives
from bert_jax.errors import UserError
from bert_jax.model.build import EncoderWithHeads, Model, ModuleFactory
from bert_jax.model.encoder import EncoderOutput
from bert_jax.parallel.batches import HostBatch

# input_ids, attention_mask (padding is on the right), token_type_ids [B, L], and of rows that hold several examples segment_ids
# and position_ids [B, L]; example_weights [B], 0 where a row only fills the batch; and the labels of the objectives. Fields
# whose names end in `weights` are 0 where a row only fills the batch (data/pretraining/stream.py).
Batch = dict[str, jax.Array]


NOT_OBJECTIVES = ("base", "losses", "masking", "pairs")  # files of this folder that hold no objective


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
        """Whether a token begins a word, bool [V]; false for pieces that continue one."""


class Loss(NamedTuple):
    """Sums over a (micro)batch, to be divided by their normalizer over the whole batch."""

    sum: jax.Array
    metrics: dict[str, jax.Array]
    outputs: dict[str, jax.Array] = {}  # of each row, e.g. logits [B, ...], for scores that are no sums  # noqa: RUF012


def encoder_inputs(batch: Batch) -> dict[str, Any]:
    """Returns what an encoder reads of a batch besides input_ids, as its arguments."""
    return {
        "token_type_ids_BxL": batch["token_type_ids"],
        "lengths_B": batch["attention_mask"].sum(axis=1),  # all batches have their padding on the right
        # Rows of several examples have these, and in fine-tuning `starts`.
        "position_ids_BxL": batch.get("position_ids"),
        "segment_ids_BxL": batch.get("segment_ids"),
        "starts_BxK": batch.get("starts"),
    }


def token_weights(batch: Batch) -> jax.Array:
    """Returns 1 for the tokens of examples, and 0 for padding and for rows that only fill a batch, float32 [..., B, L]."""
    return batch["attention_mask"] * batch["example_weights"][..., None]


def put_at_predictions(array_BxL: jax.Array, values_BxP: jax.Array, batch: Batch) -> jax.Array:
    """Returns an array with other values at the positions that are predicted; see `corrupt` of objectives/mlm.py."""
    length = array_BxL.shape[1]
    # Where there is no prediction, the place is beyond the row, and nothing is set.
    places_BxP = jnp.where(batch["mlm_weights"] > 0, batch["mlm_positions"], length)
    return jax.vmap(lambda row, places, values: row.at[places].set(values, mode="drop"))(
        array_BxL, places_BxP, values_BxP
    )


class DeviceObjective(Protocol):
    """The half of an objective that runs on the devices; fine-tuning has this half alone."""

    @property
    def options(self) -> Any:
        """This objective's `Options`, or at least `BaseOptions`."""

    @property
    def modules(self) -> Mapping[str, ModuleFactory]:
        """Trained modules in addition to the encoder, by name: a head, a generator. They are in `models.heads`.

        A module with a method `logits` is a head that `bert_jax.load` computes (see model/heads.py).
        """

    # Run or model folders of models that are read and not trained, by name, e.g. a teacher. They are loaded once, sharded, an
    # argument of the jitted step; never differentiated, saved, averaged or counted. An option named `folder` is kept as an
    # absolute path.
    frozen: Mapping[str, str] = MappingProxyType({})

    # Whether `loss` reads the hidden states of all layers, `output.hidden_states`.
    reads_all_layers: bool = False

    def weight_of(self, term: str) -> float:
        """Returns the weight in the sum of losses of a term, one of those that `loss` returns."""
        return self.options.weight

    def check(self, model: Model, frozen: Mapping[str, Model], length: int) -> None:
        """Raises UserError if the models of `frozen` do not fit the trained one, or sequences of up to `length` tokens."""
        return

    def normalizer(self, batch: Batch) -> jax.Array | dict[str, jax.Array]:
        """Returns what the sums of `loss` are divided by, from a whole batch as `corrupt` left it: the number of predictions.

        Training fails at a batch where it is 0 (see train/loop.py).
        """

    def prepare(
        self,
        models: EncoderWithHeads,
        frozen: Mapping[str, EncoderWithHeads],
        batch: Batch,
        keys_B: jax.Array,
        dropout_keys_B: jax.Array | None,
    ) -> Batch:
        """Returns the batch with what models on the devices add to it before the encoder runs.

        An objective that returns other inputs of the encoder (e.g. sampled replacements) gets a pass of its own; all others
        share one.

        Args:
          models: the encoder and the modules of all objectives; gradients flow through what is computed with them.
          frozen: the models of `frozen`.
          batch: arrays [B, ...]. Do not change it; return another one, to which any arrays may be added, also
            those of frozen models, such as a table [V, D].
          keys_B: for sampling, one for each row; the same for every batch of an evaluation.
          dropout_keys_B: for the dropout of trained modules, None in evaluation.
        """
        return batch

    def positions(self, batch: Batch) -> jax.Array | Literal["all"] | None:
        """Returns the positions [B, P] whose last hidden states `loss` reads; None if it reads the pooled state alone.

        Objectives that return the same array share the states there.
        """

    def loss(
        self, models: EncoderWithHeads, output: EncoderOutput, batch: Batch, keys_B: jax.Array | None
    ) -> Loss | dict[str, Loss]:
        """Returns the sums of the loss and of the metrics over a batch.

        Args:
          models: the encoder and the modules of all objectives.
          output: of the encoder, with the last hidden states [B, P, D] at this objective's `positions`.
          batch: as `prepare` returned it.
          keys_B: dropout keys of the rows, None in evaluation.

        Returns:
          One loss, or several by name, which are added; then `normalizer` returns as many, by the same names.
        """

    def derived(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Returns metrics that are functions of means over the whole data, such as a quotient of two, by '<term>/<metric>'.

        Args:
          means: all metrics of a step or of an evaluation, numbers or scalar arrays.
        """
        return {}


class Objective(DeviceObjective, Protocol):
    """A pretraining objective: what it does to a batch on the host, its models and its loss."""

    options: Any = None
    makes_pairs: ClassVar[bool] = False  # as `pairs.PairObjective` does; at most one such objective in a run
    masks_tokens: ClassVar[bool] = False  # in `corrupt`; at most one such objective in a run

    @property
    def modules(self) -> Mapping[str, ModuleFactory]:
        return {}

    def corrupt(self, batch: HostBatch, keys: np.ndarray) -> HostBatch:
        """Returns the batch with this objective's corruption and labels; the arrays that it is given do not change.

        Args:
          batch: joined rows, and notes, which do not get to the devices: `progress` (float64 [B]) is 0 for the first example
            of a phase, approaches 1 at its end, and is 0 in evaluation. Where an objective makes pairs, `is_other_document` and
            `is_swapped` (bool [B]) say what became of the second segments.
          keys: uint64 [B], of the rows' random numbers, made of seed, epoch, index and the objective's name. A row must depend
            on itself and its key alone, and shapes on L alone.
        """
        return batch

    def shares(self, progress: float) -> tuple[float, float]:
        """Returns the shares of the positions whose last states are read, and that are multiplied with the vocabulary.

        They count the operations of the run's encoder, at some progress of the phase.
        """
        del progress
        return 0.0, 0.0

    def for_evaluation(self) -> "Objective":
        """Returns the objective whose `corrupt` is used for held-out examples."""
        return self


def available() -> list[str]:
    """Returns the names of the objectives: the files of this folder."""
    return sorted(
        module.name
        for module in pkgutil.iter_modules(bert_jax.objectives.__path__)
        if module.name not in NOT_OBJECTIVES
    )


def default_options() -> dict[str, Any]:
    """Returns the `Options` of every objective by name, so that each option is present in every config."""
    return {name: _module(name).Options() for name in available()}


def load(names: tuple[str, ...], options: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Objective]:
    """Returns the named objectives.

    Raises:
      UserError: an unknown name, no name, the same name twice, or two objectives that both mask tokens or both decide the
        second segment.
    """
    if not names or len(set(names)) != len(names):
        raise UserError(f"objectives={names}: name at least one of {', '.join(available())}, each once")
    for name in names:
        if name not in available():
            raise UserError(f"unknown objective '{name}'; there are {', '.join(available())}")
    objectives = {name: _module(name).Objective(options[name], vocabulary) for name in names}
    for does, attribute in (("decide the second segment", "makes_pairs"), ("mask tokens", "masks_tokens")):
        alike = [name for name, objective in objectives.items() if getattr(objective, attribute)]
        if len(alike) > 1:
            raise UserError(f"objectives {' and '.join(alike)} both {does}; keep one of them")
    return objectives


def _module(name: str):
    return importlib.import_module(f"bert_jax.objectives.{name}")

"""The stream of a folder of instances: the numbered examples of a run, in whose epochs only the order differs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bert_jax.data.joining import HostBatch
from bert_jax.data.pretraining.instances import Instances
from bert_jax.data.pretraining.order import Order
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError

# The labels of each objective that instances are made for.
LABELS = {"mlm": ("mlm_positions", "mlm_labels", "mlm_weights"), "nsp": ("nsp_labels",)}
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class InstanceStream(NamedTuple):
    """The instances of one split, each once an epoch, with the labels of the objectives; nothing is corrupted here."""

    instances: Instances
    tokenizer: Tokenizer
    objectives: tuple[str, ...]
    order: Order

    @classmethod
    def build(
        cls,
        instances: Instances,
        tokenizer: Tokenizer,
        masking: str,
        length: int,
        objectives: Mapping[str, Any],
        seed: int,
        is_shuffled: bool,
    ) -> "InstanceStream":
        """Raises UserError: other objectives, another tokenizer or length, dynamic masking, or an invalid first record."""
        folder = instances.directory
        if others := [name for name in objectives if name not in LABELS]:
            problem = f"have no labels for {', '.join(others)}, only for {', '.join(LABELS)}"
            raise UserError(f"objectives: the instances of {folder} {problem}; use a corpus of tools/prepare_corpus.py")
        for name, objective in objectives.items():
            options = objective.options
            if options != type(options)(weight=options.weight):
                problem = f"options.{name}: the instances of {folder} are masked and paired already"
                raise UserError(f"{problem}; leave all but the weight as they are by default")
        if masking != "static":
            problem = f"data.masking={masking!r}: the instances of {folder} are masked already"
            raise UserError(f"{problem}; set --config.data.masking=static")
        if length != instances.sequence_length:
            problem = f"data.sequence_length={length}, but the instances of {folder} have {instances.sequence_length}"
            raise UserError(f"{problem} tokens; set it to that, or write other instances")
        instances.check_tokenizer(tokenizer, "use that of the run, or start a new run")
        instances.rows(np.zeros(1, np.int64), tokenizer)
        return cls(instances, tokenizer, (*objectives,), Order(instances.size, seed, is_shuffled))

    @property
    def size(self) -> int:
        """Examples in an epoch."""
        return self.instances.size

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.instances.directory.name

    def batch(self, numbers: np.ndarray) -> HostBatch:
        """Returns the instances as they were written."""
        _, indices = self.order.epochs_and_indices(np.asarray(numbers))
        batch = self.instances.rows(indices, self.tokenizer)
        labels = [field for name in self.objectives for field in LABELS[name]]
        weights = {"example_weights": np.ones(len(indices), np.float32)}
        return {field: batch[field] for field in (*_INPUTS, *labels)} | weights

    def describe(self, numbers: np.ndarray) -> str:
        """Names the first examples by epoch and index, and how many more there are."""
        return self.order.describe(numbers)

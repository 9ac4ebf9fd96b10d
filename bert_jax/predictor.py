"""Prediction with a run from Python: `Predictor.load(folder).predict(inputs)`. Several threads may use a predictor at once."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.model.build import Params
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks.base import Task
from bert_jax.trained import load_predictor

BATCH_SIZE = 256  # inputs; several short texts share a row


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained run that fills masks, labels texts or words, or answers questions, according to its task."""

    task: Task = dataclasses.field(repr=False)
    params: Params = dataclasses.field(repr=False)  # of its model

    @classmethod
    def load(cls, folder: str | Path, step: int | None = None) -> "Predictor":
        """Loads a run from its folder, with the checkpoint of `step` or, for None, the default one.

        That is the best of a fine-tuned run, the latest of others.

        Raises:
          UserError: the folder holds no run or no such checkpoint, or is damaged.
        """
        folder = Path(folder)
        return cls(*load_predictor(run_folder.get_config(str(folder)), folder, step))

    @property
    def input_fields(self) -> tuple[str, ...]:
        """Names of the texts that each input must hold, e.g. ('text',) or ('question', 'context')."""
        return self.task.input_fields

    def predict(self, inputs: Sequence[str | Mapping[str, Any]], batch_size: int = BATCH_SIZE) -> list[dict[str, Any]]:
        """Returns a dict for each input; its keys depend on the task: see e.g. `bert_jax.tasks.tokens.Task.predict`.

        Args:
          inputs: texts by `input_fields`, together with optional fields such as 'words'; or, with one field, plain texts.
          batch_size: number of inputs per batch.

        Raises:
          UserError: an input is invalid or lacks a field, or `inputs` is a single text.
        """
        if isinstance(inputs, str):
            raise UserError(f"inputs={inputs[:80]!r}: is a single text; put it in a list")
        return list(self.stream(map(self._by_field, inputs), batch_size))

    def stream(self, inputs: Iterable[dict[str, Any]], batch_size: int = BATCH_SIZE) -> Iterator[dict[str, Any]]:
        """Yields the predictions for any number of inputs, with `batch_size` of them in memory at a time."""
        inputs = iter(inputs)
        while batch := list(itertools.islice(inputs, batch_size)):
            yield from self.task.predict(self.params, batch)

    def _by_field(self, value: str | Mapping[str, Any]) -> dict[str, Any]:
        fields = self.input_fields
        if isinstance(value, str) and len(fields) == 1:
            return {fields[0]: value}
        if not isinstance(value, Mapping) or not all(isinstance(value.get(field), str) for field in fields):
            raise UserError(f"input {str(value)[:80]!r}: must hold texts as {', '.join(fields)}")
        return dict(value)

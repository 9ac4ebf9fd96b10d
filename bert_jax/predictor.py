"""A run that answers: `Predictor.load(folder)`, for programs that serve one. Several threads may use it at once."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.model.build import Params
from bert_jax.run import load_predictor
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks.base import Task

BATCH_SIZE = 256  # inputs at a time: of short texts they fill some rows


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Fills masks, labels texts or words, or answers questions: whatever the run was trained for."""

    task: Task
    params: Params

    @classmethod
    def load(cls, folder: str | Path, step: int | None = None) -> "Predictor":
        """The checkpoint of `step`, or the newest, of fine-tuned runs the best. Raises UserError where there is none."""
        folder = Path(folder)
        return cls(*load_predictor(run_folder.get_config(str(folder)), folder, step))

    @property
    def input_fields(self) -> tuple[str, ...]:
        """The texts that an input holds, e.g. ('text',) or ('question', 'context')."""
        return self.task.answers.input_fields

    def predict(self, inputs: Sequence[str | Mapping[str, Any]], batch_size: int = BATCH_SIZE) -> list[dict[str, Any]]:
        """An answer for each input: a text, or the texts by `input_fields` and what else the task's `predict` reads.

        Raises:
          UserError: an input without one of the texts, or that the task cannot take; a string instead of a list of them.
        """
        if isinstance(inputs, str):
            raise UserError(f"inputs={inputs[:80]!r}: is a single text; put it in a list")
        return list(self.stream(map(self._by_field, inputs), batch_size))

    def stream(self, inputs: Iterable[dict[str, Any]], batch_size: int = BATCH_SIZE) -> Iterator[dict[str, Any]]:
        """The answers to any number of inputs, `batch_size` of which are in memory at a time."""
        inputs = iter(inputs)
        while batch := list(itertools.islice(inputs, batch_size)):
            yield from self.task.answers.predict(self.params, batch)

    def _by_field(self, given: str | Mapping[str, Any]) -> dict[str, Any]:
        fields = self.input_fields
        if isinstance(given, str) and len(fields) == 1:
            return {fields[0]: given}
        if not isinstance(given, Mapping) or not all(isinstance(given.get(field), str) for field in fields):
            raise UserError(f"input {str(given)[:80]!r}: must hold texts as {', '.join(fields)}")
        return dict(given)

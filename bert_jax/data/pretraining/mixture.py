"""A stream that mixes others in fixed shares; like them, a pure function of the number of an example.

Shapes: n rows, S streams.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from bert_jax.data.joining import HostBatch
from bert_jax.errors import UserError

ROUND = 1000  # examples in which each stream has its share exactly, to a thousandth


def parse_mixture(entries: Sequence[str]) -> dict[str, float]:
    """Returns the shares of further corpora by folder, from entries 'SHARE:FOLDER'.

    Raises:
      UserError: an entry of another form, a folder named twice, or shares that leave nothing to `data.corpus`.
    """
    shares: dict[str, float] = {}
    for entry in entries:
        share, _, folder = entry.partition(":")
        try:
            value = float(share)
        except ValueError:
            value = 0.0
        if not 1 / ROUND <= value < 1.0 or not folder or folder in shares:
            remedy = "write '0.3:FOLDER' for 30% of the examples, each folder once"
            raise UserError(f"data.mixture: {entry!r} is not SHARE:FOLDER; {remedy}")
        shares[folder] = value
    if (total := sum(shares.values())) > 1 - 1 / ROUND:
        raise UserError(f"data.mixture: the shares add up to {total:g} and leave nothing to data.corpus; lower them")
    return shares


def counts_of_round(shares: Sequence[float]) -> np.ndarray:
    """Returns the examples of each stream in a round, [S]; the first one takes what the `shares` of the others leave."""
    others = np.round(np.asarray(shares) * ROUND).astype(np.int64)
    return np.array([ROUND - others.sum(), *others])


def parts_of(examples: range, counts: np.ndarray) -> list[range]:
    """Returns the numbers that some examples of a mixture have in each stream, nearly."""
    return [range(int(examples.start * count // ROUND), int(examples.stop * count // ROUND)) for count in counts]


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Streams that are mixed as evenly as can be: each round of 1,000 examples has `counts` of them, always in one order."""

    streams: Sequence[Any]
    counts: np.ndarray  # [S], examples of each stream in a round

    @cached_property
    def _round(self) -> tuple[np.ndarray, np.ndarray]:
        """The stream of each example of a round, [ROUND], and its number among that stream's."""
        owners = np.repeat(np.arange(len(self.counts)), self.counts)
        ranks = np.concatenate([np.arange(count) for count in self.counts])
        order = np.argsort((ranks + 0.5) / self.counts[owners], kind="stable")
        return owners[order], ranks[order]

    @property
    def name(self) -> str:
        """Names of the corpora."""
        return " and ".join(stream.name for stream in self.streams)

    @property
    def size(self) -> int:
        """Examples after which each stream has completed an epoch."""
        rounds = max(stream.size / count for stream, count in zip(self.streams, self.counts, strict=True))
        return int(np.ceil(rounds * ROUND))

    def batch(self, numbers: np.ndarray) -> HostBatch:
        """Returns the examples [n] of the streams that they belong to."""
        parts = [(rows, stream.batch(own)) for rows, stream, own in self._parts(numbers)]
        batch = {name: np.empty((len(numbers), *array.shape[1:]), array.dtype) for name, array in parts[0][1].items()}
        for rows, part in parts:
            for name, array in part.items():
                batch[name][rows] = array
        return batch

    def describe(self, numbers: np.ndarray) -> str:
        """Names the first examples of each stream."""
        return "; ".join(f"of {stream.name}: {stream.describe(own)}" for _, stream, own in self._parts(numbers))

    def _parts(self, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, Any, np.ndarray]]:
        """Yields, for each stream with any of the examples, their places in the batch, the stream, and their numbers there."""
        rounds, places = np.divmod(np.asarray(numbers), ROUND)
        owners, ranks = (array[places] for array in self._round)
        for owner, stream in enumerate(self.streams):
            if len(rows := np.flatnonzero(owners == owner)):
                yield rows, stream, rounds[rows] * self.counts[owner] + ranks[rows]

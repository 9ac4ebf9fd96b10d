"""A stream that mixes others in fixed shares; like them, a pure function of the number of an example.

Shapes: n rows, S streams.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bert_jax import random_numbers
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
    """Streams that are mixed: each round of 1,000 examples has `counts` of them, in a random order."""

    streams: Sequence[Any]
    counts: np.ndarray  # [S], examples of each stream in a round
    seed: int

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
        keys = random_numbers.fold_in(random_numbers.row_keys(self.seed, rounds), "mixture")
        places = random_numbers.permuted(keys, places, ROUND)
        ends = np.cumsum(self.counts)
        owners = np.searchsorted(ends, places, side="right")
        for owner, stream in enumerate(self.streams):
            rows = np.flatnonzero(owners == owner)
            if len(rows):
                own = rounds[rows] * self.counts[owner] + places[rows] - (ends[owner] - self.counts[owner])
                yield rows, stream, own

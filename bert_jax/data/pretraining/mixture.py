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
from bert_jax.files import same_path

ROUND = 1000  # examples in which each stream has its share exactly, to a thousandth


def parse_mixture(corpus: str, entries: Sequence[str]) -> dict[str, int]:
    """Returns how many examples of a round each corpus has, by folder: `data.corpus` first, then those of 'SHARE:FOLDER'.

    Raises:
      UserError: an entry of another form, a share below 0.001 or from 1 on, a folder named twice, or shares that leave nothing
        to `data.corpus`.
    """
    counts = {corpus: 0}
    for entry in entries:
        text, _, folder = entry.partition(":")
        try:
            share = float(text)
        except ValueError:
            folder = ""
        remedy = "write '0.3:FOLDER' for 30% of the examples"
        if not folder:
            raise UserError(f"data.mixture: {entry!r} is not SHARE:FOLDER; {remedy}")
        if not 1 <= share * ROUND < ROUND:  # also for NaN
            raise UserError(f"data.mixture: {entry!r}: the share is not from 0.001 to below 1; {remedy}")
        if any(same_path(folder, other) for other in counts):
            raise UserError(f"data.mixture: {folder} is there twice; name each folder once")
        counts[folder] = round(share * ROUND)
    if (rest := ROUND - sum(counts.values())) < 1:
        shares = " + ".join(f"{count / ROUND:g}" for count in list(counts.values())[1:])
        raise UserError(f"data.mixture: the shares {shares} leave nothing to data.corpus; lower them")
    return counts | {corpus: rest}


def counts_by_size(sizes: dict[str, int], temperature: float) -> dict[str, int]:
    """Returns how many examples of a round each corpus has, by folder: in proportion to sizes ** (1 / temperature).

    At 1 a token of each corpus is seen equally often; at higher temperatures small corpora are seen more often (Devlin 2018,
    multilingual BERT, whose exponent of 0.7 is a temperature of 1.43).

    Args:
      sizes: tokens of each corpus, by folder.
      temperature: above 0.
    """
    weights = np.array([*sizes.values()], float) ** (1 / temperature)
    exact = weights / weights.sum() * ROUND
    counts = np.maximum(1, np.floor(exact).astype(int))
    # What rounding left over goes to the largest remainders; a corpus that rounding would leave out has one example.
    while missing := np.sign(ROUND - counts.sum()):
        gains = np.where((missing > 0) | (counts > 1), missing * (exact - counts), -np.inf)
        counts[np.argmax(gains)] += missing
    return dict(zip(sizes, counts.tolist(), strict=True))


def round_of(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the stream of each example of a round, [ROUND], and its number among that stream's; as even as can be."""
    owners = np.repeat(np.arange(len(counts)), counts)
    ranks = np.concatenate([np.arange(count) for count in counts])
    order = np.argsort((ranks + 0.5) / np.asarray(counts)[owners], kind="stable")
    return owners[order], ranks[order]


def taken(number: int, counts: Sequence[int]) -> list[int]:
    """Returns how many of the first `number` examples of a mixture are of each stream, [S]."""
    rounds, rest = divmod(number, ROUND)
    in_rest = np.bincount(round_of(counts)[0][:rest], minlength=len(counts))
    return [rounds * count + int(more) for count, more in zip(counts, in_rest, strict=True)]


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Streams that are mixed as evenly as can be: each round of 1,000 examples has `counts` of them, always in one order."""

    streams: Sequence[Any]
    counts: Sequence[int]  # [S], examples of each stream in a round
    first_example: int = 0  # of the phase
    first_of_streams: Sequence[int] = ()  # [S], the numbers that it has in each stream; () for 0

    @cached_property
    def _round(self) -> tuple[np.ndarray, np.ndarray]:
        return round_of(self.counts)

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
        parts = [(rows, stream.batch(own)) for rows, stream, own in self.parts(numbers)]
        batch = {name: np.empty((len(numbers), *array.shape[1:]), array.dtype) for name, array in parts[0][1].items()}
        for rows, part in parts:
            for name, array in part.items():
                batch[name][rows] = array
        return batch

    def describe(self, numbers: np.ndarray) -> str:
        """Names the first examples of each stream."""
        return "; ".join(f"of {stream.name}: {stream.describe(own)}" for _, stream, own in self.parts(numbers))

    def parts(self, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, Any, np.ndarray]]:
        """Yields, for each stream with any of the examples, their places in the batch, the stream, and their numbers there."""
        rounds, places = np.divmod(np.asarray(numbers) - self.first_example, ROUND)
        owners, ranks = (array[places] for array in self._round)
        firsts = self.first_of_streams or [0] * len(self.streams)
        for owner, (stream, count, first) in enumerate(zip(self.streams, self.counts, firsts, strict=True)):
            if len(rows := np.flatnonzero(owners == owner)):
                yield rows, stream, first + rounds[rows] * count + ranks[rows]


def check_same_fields(streams: Sequence[Any]) -> None:
    """Raises UserError if streams make arrays of other names or shapes, which cannot be mixed."""
    rows = [stream.batch(np.zeros(1, np.int64)) for stream in streams]
    for stream, row in zip(streams, rows, strict=True):
        for name in rows[0].keys() | row.keys():
            shapes = [of[name].shape[1:] if name in of else None for of in (rows[0], row)]
            if shapes[0] != shapes[1]:
                raise UserError(
                    f"data.mixture: {streams[0].name} and {stream.name} differ in {name}: {shapes[0]} and {shapes[1]}; "
                    "mix corpora, or instances with the same number of predictions"
                )

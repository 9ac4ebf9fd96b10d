"""Prepares shards with workers on several machines that share a folder: the same shards as one process makes.

Each part of the source is inspected by some worker (inspection.py). The driver then decides in the order of the documents which
of them are duplicates, and to which shard each one belongs. At last each shard is written by some worker, from the texts that
inspection has left in the folder. What is finished is not done again when a preparation is resumed.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bert_jax.data.corpus.cleaning import Duplicates
from bert_jax.data.corpus.inspection import Job, inspect_part, inspected, plan_parts, texts_file
from bert_jax.data.corpus.shards import (
    SPLITS,
    ShardInfo,
    Shards,
    ShardTask,
    finished_shard,
    keep_tokenizer,
    write_shard_of,
)
from bert_jax.data.corpus.spool import read_texts
from bert_jax.data.sources.base import BadRecords
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import whole_file

logger = logging.getLogger(__name__)
FOLDER = "inspected"  # in the work folder
_TOKENIZER = "tokenizer"
# Calls a function for each number: on any machine, in any order, possibly more than once. Returns when all of them are done.
ForEach = Callable[[Callable[[int], None], Sequence[int]], None]
_writing = threading.Lock()  # runners start several threads in a process: one shard at a time bounds its memory


class _Run(NamedTuple):
    """Texts of a part that follow each other there and in a shard."""

    part: int
    start: int  # number of the first text in its split of the part
    stop: int


def make_shards(
    job: Job,
    for_each: ForEach,
    tokenizer: Tokenizer,
    shard_bytes: int,
    dropped: Counter[str],
    bad: BadRecords,
    progress: Callable[[int], None] = lambda text_bytes: None,
) -> list[ShardInfo]:
    """Writes the shards of a source into the folder that contains `job.folder`; returns their descriptions, by number.

    Args:
      job: the preparation.
      for_each: does the work.
      tokenizer: saved into the folder for the workers.
      shard_bytes: size of a shard in bytes of text.
      dropped: counts the documents that are dropped, by reason; is changed.
      bad: counts the records that cannot be read; is changed.
      progress: called with the size of each document when it is decided about.

    Raises:
      UserError: as `read_documents`; or workers do not see the folder.
    """
    job.folder.mkdir(exist_ok=True)
    tokenizer.save(job.folder / _TOKENIZER)
    parts = plan_parts(job)
    logger.info("%d parts of the source are inspected", parts)
    for_each(partial(inspect_part, job), range(parts))
    count = _decide(job, parts, shard_bytes, dropped, bad, progress)
    logger.info("%d shards are written", count)
    for_each(partial(_write_shard, job, tokenizer.fingerprint), range(count))
    return [_description(job, number) for number in range(count)]


def _decide(
    job: Job,
    parts: int,
    shard_bytes: int,
    dropped: Counter[str],
    bad: BadRecords,
    progress: Callable[[int], None],
) -> int:
    """Decides which documents stay and in which shards they are, and writes this down; returns the number of shards."""
    duplicates, shards = Duplicates(job.cleaning), Shards(shard_bytes)
    runs: dict[str, list[_Run]] = {split: [] for split in SPLITS}
    table = list[tuple[int, int]]()  # of the shards: the number of the split, and the end of the runs
    with whole_file(_runs(job), binary=True) as file:

        def end_shard(split: str) -> None:
            file.write(np.array(runs[split], "<i8").tobytes())
            table.append((SPLITS.index(split), (table[-1][1] if table else 0) + len(runs[split])))
            runs[split] = []

        for part in range(parts):
            texts = dict.fromkeys(SPLITS, 0)  # of this part so far
            for row in inspected(job, part, bad):
                progress(row.size)
                if reason := row.reason or duplicates.reason(row.key, row.bands):
                    dropped[reason] += 1
                else:
                    _extend(runs[row.split], part, texts[row.split])
                    if shards.add(row.split, row.size) is not None:
                        end_shard(row.split)
                texts[row.split] += not row.reason
        for split in SPLITS:
            if runs[split]:
                end_shard(split)
    with whole_file(_table(job), binary=True) as file:
        np.save(file, np.array(table, np.int64).reshape(-1, 2))
    return len(table)


def _extend(runs: list[_Run], part: int, text: int) -> None:
    """Adds the number of a text in a part to the runs of a shard."""
    if runs and (runs[-1].part, runs[-1].stop) == (part, text):
        runs[-1] = runs[-1]._replace(stop=text + 1)
    else:
        runs.append(_Run(part, text, text + 1))


def _write_shard(job: Job, fingerprint: str, number: int) -> None:
    """Writes a shard, unless it has been written before; one at a time in each process."""
    with _writing:
        keep_tokenizer(_load_tokenizer(job.folder / _TOKENIZER, fingerprint))
        split, texts = _texts(job, number)
        write_shard_of(job.folder.parent, ShardTask.of(number, split, list(texts)))


def _texts(job: Job, number: int) -> tuple[str, Iterator[str]]:
    """Returns the split of a shard, and its texts in their order."""
    table, runs = np.load(_table(job), mmap_mode="r"), np.memmap(_runs(job), "<i8", "r").reshape(-1, len(_Run._fields))
    split, end = table[number].tolist()
    start = int(table[number - 1, 1]) if number else 0
    of_parts = groupby(map(_Run._make, runs[start:end].tolist()), key=lambda run: run.part)

    def texts() -> Iterator[str]:
        for part, of_part in of_parts:
            yield from read_texts(texts_file(job, part, SPLITS[split]), (run[1:] for run in of_part))

    return SPLITS[split], texts()


@lru_cache(maxsize=1)
def _load_tokenizer(folder: Path, fingerprint: str) -> Tokenizer:
    """Loads the tokenizer; the fingerprint is an argument for the cache."""
    return Tokenizer.load(folder)


def _description(job: Job, number: int) -> ShardInfo:
    shard = finished_shard(job.folder.parent, number)
    if shard is None:
        problem = f"shard {number} is missing, although a worker has written it"
        raise UserError(f"{job.folder.parent}: {problem}: put --output on a disk that all workers share")
    return shard


def _runs(job: Job) -> Path:
    return job.folder / "runs"


def _table(job: Job) -> Path:
    return job.folder / "shards.npy"

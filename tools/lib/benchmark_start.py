"""The rows of the suite `input` on a corpus of thousands of shards, which is simulated: one shard under many names."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.data.corpus.arrays import checksums_file, lengths_file
from bert_jax.data.corpus.block_files import num_blocks
from bert_jax.data.corpus.index import INDEX_FILE
from tools.lib.benchmark_rows import Row
from tools.lib.benchmark_settings import Settings
from tools.lib.benchmark_sides import Side, take_turns

SHARDS, LENGTH, SECONDS = 10_000, 512, 30.0
FAR_STEP = 1_000_000


def start_rows(
    settings: Settings,
    corpus: str,
    batch_size: int,
    kinds: tuple[str, ...],
    stream_of: Callable[[str, str, int], Any],
    shards: int = SHARDS,
) -> Iterator[Row]:
    """Measures the seconds from opening a corpus of many shards to a run's first batch, or to that of a later step."""
    with tempfile.TemporaryDirectory() as folder:
        many = corpus_of_many_shards(Path(corpus), Path(folder), shards)
        for kind in kinds:
            sides: dict[str, Side] = {
                f"{kind}, {LENGTH}, {shards:,} shards: batch of step {step:,}": _first_batch(
                    many, kind, step, batch_size, stream_of
                )
                for step in (0, FAR_STEP)
            }
            for name, seconds in take_turns(sides, settings.turns, SECONDS).items():
                yield Row(name, "s", seconds)


def _first_batch(
    corpus: Path, kind: str, step: int, batch_size: int, stream_of: Callable[[str, str, int], Any]
) -> Callable[[], float]:
    def turn() -> float:
        start = time.perf_counter()
        stream_of(str(corpus), kind, LENGTH).batch(step * batch_size + np.arange(batch_size))
        return time.perf_counter() - start

    return turn


def corpus_of_many_shards(corpus: Path, folder: Path, shards: int) -> Path:
    """Makes a corpus in a folder whose training split has the first shard of another one so many times; returns its folder."""
    many = folder / "many"
    shutil.copytree(corpus, many)
    index = json.loads((many / INDEX_FILE).read_text())
    first = index["splits"]["train"]["shards"][0]
    names = [f"shard-{number:06d}.array_record" for number in range(shards)]
    for name in names:
        os.link(many / first["file"], many / name)
    index["splits"]["train"] = {
        "documents": shards * first["documents"],
        "shards": [first | {"file": name, "number": number} for number, name in enumerate(names)],
    }
    (many / INDEX_FILE).write_text(json.dumps(index))
    counts = {lengths_file("train"): first["documents"], checksums_file("train"): num_blocks(first["tokens"])}
    for file, count in counts.items():
        np.save(many / file, np.tile(np.load(many / file)[:count], shards))
    return many

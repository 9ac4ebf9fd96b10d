"""The sides of `tools/benchmark.py input`: the host's part of pretraining."""

import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.data.corpus.format import TOKENIZER_FOLDER, Corpus
from bert_jax.data.feeder import feed
from bert_jax.data.pretraining.stream import CorpusStream, DataConfig
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.objectives.base import default_options, load
from tools.lib.benchmark_sides import Side, take_turns

WHOLE_WORDS = "whole words"
# Title -> objectives.
KINDS = {"masked windows": ("mlm",), WHOLE_WORDS: ("mlm",), "NSP pairs": ("mlm", "nsp"), "SOP pairs": ("mlm", "sop")}
BATCHES = 50  # of a turn


def rates(
    corpus: str, batch_size: int, turns: int, rival: Callable[[dict[str, Any]], tuple[str, Side]] | None
) -> Iterator[str]:
    """Yields a line for each kind, length and side. `rival`: options of benchmark_rival_input.py -> a title and turns."""
    compared = {"two workers": "one worker", "transformers": "one core"}
    with tempfile.TemporaryDirectory() as folder:
        for length, kind in itertools.product((128, 512), KINDS):
            stream = stream_of(corpus, kind, length)
            sides = {"one core": in_one_process(stream, batch_size)}
            sides["one worker"], end_one = in_workers(stream, batch_size, 1)
            sides["two workers"], end_two = in_workers(stream, batch_size, 2)
            if rival and "pairs" not in kind:  # transformers has no collator that makes pairs
                _, sides["transformers"] = rival(rival_options(corpus, kind, length, batch_size, Path(folder)))
            measured = take_turns(sides, turns)
            end_one()
            end_two()
            for name, seconds in measured.items():
                note = ""
                if base := compared.get(name):
                    ratios = [a / b for a, b in zip(measured[base], seconds, strict=True)]
                    note = f"{statistics.median(ratios):.2f} x {base}"
                rate = batch_size * length / statistics.median(seconds) / 1e6
                yield f"{kind + ',':16}{length:4} tokens  {name:13}{note:20}{rate:6.2f} M tokens/s"


def stream_of(corpus: str, kind: str, length: int) -> CorpusStream:
    """Returns the stream of a run on this corpus."""
    tokenizer = Tokenizer.load(Path(corpus) / TOKENIZER_FOLDER)
    options = default_options()
    options["mlm"] = dataclasses.replace(options["mlm"], whole_word_mask=kind == WHOLE_WORDS)
    config = DataConfig(corpus=corpus, sequence_length=length)
    return CorpusStream.build(Corpus.open(corpus), tokenizer, config, load(KINDS[kind], options, tokenizer), seed=0)


def in_one_process(stream: CorpusStream, batch_size: int) -> Side:
    """Returns a turn that measures seconds of a core for a batch, of a corpus whose blocks have all been read before."""
    rows, steps = np.arange(batch_size), itertools.count()
    for start in range(0, stream.size, batch_size):
        stream.batch(start + rows)

    def turn() -> float:
        start = time.process_time()
        for step in itertools.islice(steps, BATCHES):
            stream.batch(step * batch_size + rows)
        return (time.process_time() - start) / BATCHES

    return turn


def in_workers(stream: CorpusStream, batch_size: int, workers: int) -> tuple[Side, Callable[[], None]]:
    """Returns a turn that measures seconds for a batch as the loop sees them, and a function that ends the workers."""
    rows, prefetch = np.arange(batch_size), 16
    batches = feed(lambda step: stream.batch(step * batch_size + rows), 0, 1 << 40, workers, prefetch)
    for _ in range(-(-stream.size // batch_size) * workers):  # until each of them has read the corpus
        next(batches)

    def turn() -> float:
        for _ in range(2 * prefetch * workers):  # those made while others took their turns
            next(batches)
        start = time.perf_counter()
        for _ in range(4 * BATCHES):
            next(batches)
        return (time.perf_counter() - start) / (4 * BATCHES)

    return turn, batches.close  # type: ignore[attr-defined]


def rival_options(corpus: str, kind: str, length: int, batch_size: int, folder: Path) -> dict[str, Any]:
    """Returns options of benchmark_rival_input.py: the same windows, whose words and special tokens it need not look for."""
    stream = stream_of(corpus, kind, length)
    count = min(8 * batch_size, stream.size // batch_size * batch_size)
    ids = stream.reader.rows(np.zeros(count, int), np.arange(count))["input_ids"]
    tokenizer = stream.reader.tokenizer
    path = folder / f"{kind}_{length}.npz"
    np.savez(path, ids=ids, is_special=np.isin(ids, tokenizer.special_ids), is_start=tokenizer.word_starts[ids])
    options = {"windows": str(path), "tokenizer": str(Path(corpus) / TOKENIZER_FOLDER), "batch_size": batch_size}
    return options | {"whole_word": kind == WHOLE_WORDS, "batches": BATCHES}

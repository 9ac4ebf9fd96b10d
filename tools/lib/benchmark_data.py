"""The suites `input` and `prepare`: the host's part of pretraining, from texts to batches."""

import dataclasses
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from bert_jax.data.corpus.format import Corpus
from bert_jax.data.corpus.index import TOKENIZER_FOLDER
from bert_jax.data.corpus.prepare import prepare
from bert_jax.data.corpus.remote_folder import local_folder
from bert_jax.data.feeder import feed
from bert_jax.data.inputs import json_line
from bert_jax.data.pretraining.mixture import Mixture
from bert_jax.data.pretraining.stream import CorpusStream, DataConfig
from bert_jax.data.sources.documents import Document
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import write_text
from bert_jax.objectives.base import default_options, load
from tools.lib.benchmark_bucket import bucket_rows
from tools.lib.benchmark_material import Material
from tools.lib.benchmark_rows import Row, failed_row, rate, ratio_row, ratios
from tools.lib.benchmark_settings import RIVAL, Settings
from tools.lib.benchmark_sides import Side, peak_memory_of_process, seconds_of_process, take_turns
from tools.lib.benchmark_start import start_rows

WHOLE_WORDS, PACKED, MIXED = "whole words", "packed documents", "windows of two corpora"
# Title -> objectives.
KINDS = {
    "masked windows": ("mlm",),
    WHOLE_WORDS: ("mlm",),
    "n-grams": ("mlm",),
    "spans": ("mlm",),
    PACKED: ("mlm",),
    MIXED: ("mlm",),
    "NSP pairs": ("mlm", "nsp"),
    "SOP pairs": ("mlm", "sop"),
}
RIVAL_KINDS = ("masked windows", WHOLE_WORDS)  # those that transformers has a collator for
MASKINGS = {WHOLE_WORDS: "word", "n-grams": "ngram", "spans": "span"}
LENGTHS = (128, 512)
BATCH_SIZE, QUICK_BATCH_SIZE = 256, 8  # rows
BATCHES, QUICK_BATCHES = 50, 2  # of a turn
SECONDS = 60.0  # of the turns of one comparison
MOST_WORKERS = 8
REPEATED = 6  # times the texts, for the command, whose start would matter more otherwise
LARGER = 10  # times that text, to see whether memory grows with it
MANY_SHARDS = "--shard_megabytes=2"  # also in the smaller text
ENCODED = 1000  # documents that tokenizers gets at a time


# ----------------------------------------------------------------------------------------------------------------------
# input
# ----------------------------------------------------------------------------------------------------------------------


def input_pipeline(settings: Settings) -> tuple[dict[str, Any], Iterator[Row]]:
    """Measures the batches that pretraining reads: of one core, and of worker processes, from the loop's side."""
    corpus = Material(settings).corpus()
    batch_size = settings.batch_size or (QUICK_BATCH_SIZE if settings.quick else BATCH_SIZE)
    about = {"corpus": corpus, "batch_size": batch_size, "turns": settings.turns}
    return about | {"one_core": "CPU time", "workers": "time"}, _input_rows(settings, corpus, batch_size)


def _input_rows(settings: Settings, corpus: str, batch_size: int) -> Iterator[Row]:
    bases = {"two workers": "one worker", RIVAL: "one core"}
    batches = QUICK_BATCHES if settings.quick else BATCHES
    with tempfile.TemporaryDirectory() as folder:
        for length, kind in itertools.product(LENGTHS, KINDS) if not settings.quick else [(LENGTHS[0], WHOLE_WORDS)]:
            stream = stream_of(corpus, kind, length)
            sides = {"one core": in_one_process(stream, batch_size, batches)}
            sides["one worker"], end_one = in_workers(stream, batch_size, batches, 1)
            ends = [end_one]
            if not settings.quick:
                sides["two workers"], end_two = in_workers(stream, batch_size, batches, 2)
                ends.append(end_two)
            if settings.against and kind in RIVAL_KINDS:
                options = rival_options(corpus, kind, length, batch_size, Path(folder)) | {"batches": batches}
                try:
                    _, sides[RIVAL] = settings.child("benchmark_rival_input.py", options)
                except UserError as error:
                    yield failed_row(f"{kind}, {length}: {RIVAL}", error)
            measured = take_turns(sides, settings.turns, SECONDS)
            for end in ends:
                end()
            for name, seconds in measured.items():
                base = bases.get(name, "")
                compared: Any = {"base": base, "ratios": ratios(measured[base], seconds)} if base else {}
                title = f"{kind}, {length}: {name}"
                yield rate(title, "M tokens/s", batch_size * length / 1e6, seconds, **compared)
    if not settings.quick:
        yield from start_rows(settings, corpus, batch_size, ("masked windows", PACKED), stream_of)
        yield from bucket_rows(settings, corpus, batch_size, stream_of)


def stream_of(corpus: str, kind: str, length: int) -> CorpusStream | Mixture:
    """Returns the stream of a run on this corpus; a mixture is of the same corpus twice, in two orders."""
    tokenizer = Tokenizer.load(local_folder(corpus) / TOKENIZER_FOLDER)
    options = default_options()
    options["mlm"] = dataclasses.replace(options["mlm"], masking=MASKINGS.get(kind, "token"))
    config = DataConfig(corpus=corpus, sequence_length=length, packing="documents" if kind == PACKED else "windows")
    streams = [
        CorpusStream.build(Corpus.open(corpus), tokenizer, config, load(KINDS[kind], options, tokenizer), seed)
        for seed in range(2 if kind == MIXED else 1)
    ]
    return Mixture(streams, (700, 300)) if kind == MIXED else streams[0]


def in_one_process(stream: CorpusStream | Mixture, batch_size: int, batches: int) -> Side:
    """Returns a turn that measures seconds of a core for a batch, of a corpus whose blocks have all been read before."""
    rows, steps = np.arange(batch_size), itertools.count()
    for start in range(0, stream.size, batch_size):
        stream.batch(start + rows)

    def turn() -> float:
        start = time.process_time()
        for step in itertools.islice(steps, batches):
            stream.batch(step * batch_size + rows)
        return (time.process_time() - start) / batches

    return turn


def in_workers(
    stream: CorpusStream | Mixture, batch_size: int, batches: int, workers: int
) -> tuple[Side, Callable[[], None]]:
    """Returns a turn that measures seconds for a batch as the loop sees them, and a function that ends the workers."""
    rows, prefetch, of_turn = np.arange(batch_size), 16, 4 * batches
    made = feed(lambda step: stream.batch(step * batch_size + rows), 0, 1 << 40, workers, prefetch)
    for _ in range(-(-stream.size // batch_size) * workers):  # until each of them has read the corpus
        next(made)

    def turn() -> float:
        for _ in range(2 * prefetch * workers):  # those made while others took their turns
            next(made)
        start = time.perf_counter()
        for _ in range(of_turn):
            next(made)
        return (time.perf_counter() - start) / of_turn

    return turn, made.close  # type: ignore[attr-defined]


def rival_options(corpus: str, kind: str, length: int, batch_size: int, folder: Path) -> dict[str, Any]:
    """Returns options of benchmark_rival_input.py: the same windows, whose words and special tokens it need not look for."""
    stream = stream_of(corpus, kind, length)
    assert isinstance(stream, CorpusStream)
    count = min(8 * batch_size, stream.size // batch_size * batch_size)
    ids = stream.reader.rows(np.zeros(count, int), np.arange(count))["input_ids"]
    tokenizer = stream.reader.tokenizer
    path = folder / f"{kind}_{length}.npz"
    np.savez(path, ids=ids, is_special=np.isin(ids, tokenizer.special_ids), is_start=tokenizer.word_starts[ids])
    options = {"windows": str(path), "tokenizer": str(Path(corpus) / TOKENIZER_FOLDER), "batch_size": batch_size}
    return options | {"whole_word": kind == WHOLE_WORDS}


# ----------------------------------------------------------------------------------------------------------------------
# prepare
# ----------------------------------------------------------------------------------------------------------------------


def prepare_corpus(settings: Settings) -> tuple[dict[str, Any], Iterator[Row]]:
    """Measures MB/s of preparing a corpus, of one core against only tokenizers, and of the command with worker processes."""
    material = Material(settings)
    documents, tokenizer = material.documents(), material.tokenizer()
    megabytes = sum(len(document.text.encode()) for document in documents) / 1e6
    about = {"megabytes": round(megabytes, 2), "documents": len(documents), "turns": settings.turns}
    return about | {"one_core": "CPU time", "workers": "time"}, _prepare_rows(settings, documents, tokenizer, megabytes)


def _prepare_rows(settings: Settings, documents: list[Document], tokenizer: Path, megabytes: float) -> Iterator[Row]:
    workers = min(MOST_WORKERS, len(os.sched_getaffinity(0)))
    sides = {"one core": partial(seconds_to_prepare, documents, tokenizer, 1, time.process_time)}
    rival = f"tokenizers {tokenizers.__version__}"
    sides[rival] = partial(seconds_to_encode, documents, tokenizer)
    measured = take_turns(sides, settings.turns, SECONDS)
    for name, seconds in measured.items():
        yield rate(name, "MB/s", megabytes, seconds)
    yield ratio_row(rival, measured[rival], measured["one core"])
    if settings.quick or workers == 1:
        return
    with tempfile.TemporaryDirectory() as folder:
        text, numbers = Path(folder) / "0.jsonl", itertools.count()
        write_text(text, "".join(json_line({"text": document.text}) for document in REPEATED * documents))

        def arguments(source: str, workers: int, *flags: str) -> list[str]:
            output = f"--output={folder}/corpus{next(numbers)}"
            common = [f"--source=jsonl:{folder}/{source}", f"--tokenizer={tokenizer}", output, f"--workers={workers}"]
            return ["tools/prepare_corpus.py", *common, *flags]

        def command(workers: int) -> float:
            return seconds_of_process(arguments("0.jsonl", workers, "--shard_megabytes=1"))

        commands = {f"the command, --workers={count}": partial(command, count) for count in (1, workers)}
        (one, of_one), (many, of_many) = take_turns(commands, settings.turns, SECONDS).items()
        small = peak_memory_of_process(arguments("0.jsonl", workers, MANY_SHARDS))
        for number in range(1, LARGER):
            shutil.copy(text, text.with_name(f"{number}.jsonl"))
        large = peak_memory_of_process(arguments("*.jsonl", workers, MANY_SHARDS))
    note = f"{REPEATED * megabytes:.0f} MB, its start included"
    yield rate(one, "MB/s", REPEATED * megabytes, of_one, note=note)
    yield rate(many, "MB/s", REPEATED * megabytes, of_many, base="--workers=1", ratios=ratios(of_one, of_many))
    for times, memory in ((1, small), (LARGER, large)):
        yield Row(f"memory, {times * REPEATED * megabytes:,.0f} MB of text", "MB", [memory], note="the largest process")


def seconds_to_prepare(documents: list[Document], tokenizer: Path, workers: int, clock: Callable[[], float]) -> float:
    """Returns the seconds by a clock in which a corpus is written."""
    loaded = Tokenizer.load(tokenizer)  # which does not remember any word yet
    with tempfile.TemporaryDirectory() as folder:
        start = clock()
        prepare(documents, loaded, Path(folder) / "corpus", source="benchmark", shard_megabytes=1.0, workers=workers)
        return clock() - start


def seconds_to_encode(documents: list[Document], tokenizer: Path) -> float:
    """Returns the seconds of CPU time in which tokenizers turns the paragraphs of all documents into ids."""
    engine = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    texts = [document.text.splitlines() for document in documents]
    start = time.process_time()
    for first in range(0, len(texts), ENCODED):
        engine.encode_batch(
            list(itertools.chain.from_iterable(texts[first : first + ENCODED])), add_special_tokens=False
        )
    return time.process_time() - start

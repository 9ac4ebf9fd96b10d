"""Streams of batches: the numbered examples of a run, a pure function of (corpus, config, seed, number).

A stream is asked for examples by number and returns whole batches; what it reads, in which order, and how it mixes is its own
business. Shapes: n rows.
"""

import dataclasses
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from bert_jax import random_numbers
from bert_jax.data.corpus.format import Corpus
from bert_jax.data.corpus.remote_records import CACHE_MEGABYTES
from bert_jax.data.joining import HostBatch
from bert_jax.data.pretraining.documents import PackedDocuments
from bert_jax.data.pretraining.instance_stream import InstanceStream
from bert_jax.data.pretraining.instances import Instances, holds_instances
from bert_jax.data.pretraining.mixture import Mixture, check_same_fields, counts_by_size, parse_mixture, taken
from bert_jax.data.pretraining.order import Order, OrderOfBlocks
from bert_jax.data.pretraining.pairs import SentencePairs
from bert_jax.data.pretraining.windows import FullWindows
from bert_jax.data.remote import is_url
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError

MASK_TIMES, PACKINGS = ("dynamic", "static"), ("windows", "documents")
PROGRESS = "progress"  # a note of each row for objectives, see `CorpusStream.progress`
# Of what example number n is. Version 1, which config.json does not mention, drew the numbers of each example from a Philox.
STREAM_VERSION = 2


@dataclasses.dataclass(frozen=True)
class DataConfig:
    # Folder made by tools/prepare_corpus.py, or its URL, such as s3://bucket/corpus; or a folder of instances (see
    # instances.py); or text, `text:GLOB` and the other sources of that tool, which is then prepared when the run starts, and
    # kept in ~/.cache/bert_jax/corpora.
    corpus: str = ""
    tokenizer: str = ""  # folder of the tokenizer for text that is prepared when the run starts; '': that of init_from
    mixture: tuple[str, ...] = ()  # further corpora, 'SHARE:FOLDER', each with its share of the examples
    # The entries of `mixture` are folders alone, and shares follow sizes: tokens ** (1 / temperature). 0: shares are given.
    mixture_temperature: float = 0.0
    eval_corpora: tuple[str, ...] = ()  # further corpora to evaluate on; metrics are named after their folders
    eval_origin: bool = False  # evaluate on the corpus of the run in init_from, too: what is forgotten of it
    sequence_length: int = 128  # tokens of an example, special tokens counted in
    # What fills a row without pairs: 'windows' of the running text, or whole 'documents' that do not see each other.
    packing: str = "windows"
    document_overlap: int = 0  # tokens that consecutive pieces of a document share, where it is longer than a row
    isolate_documents: bool = False  # documents in a window do not see each other either
    masking: str = "dynamic"  # 'static': an example is cut, paired and masked the same way in every epoch
    short_seq_prob: float = 0.1  # of pairs, those cut to a random shorter length (create_pretraining_data.py)
    prefetch: int = 16  # batches made ahead
    workers: int = 0  # processes that make them; 0: a thread of this process
    # Size of the file in ~/.cache/bert_jax/remote that keeps what is read of a corpus at a URL; of each corpus and split.
    cache_megabytes: int = CACHE_MEGABYTES
    stream_version: int = STREAM_VERSION  # noted for the run, not to be chosen

    def __post_init__(self):
        if self.prefetch < 1 or self.workers < 0:
            raise ValueError(f"prefetch={self.prefetch} must be at least 1, and workers={self.workers} at least 0")
        if self.cache_megabytes < 1:
            raise ValueError(f"cache_megabytes={self.cache_megabytes} must be at least 1")
        if not 0.0 <= self.short_seq_prob <= 1.0:
            raise ValueError(f"short_seq_prob={self.short_seq_prob} must be from 0 to 1")
        if not (self.mixture_temperature == 0.0 or 0.1 <= self.mixture_temperature <= 1e6):
            raise ValueError(f"mixture_temperature={self.mixture_temperature} must be 0, or from 0.1 to 1,000,000")
        if self.packing not in PACKINGS:
            raise ValueError(f"packing={self.packing!r} is not one of {', '.join(PACKINGS)}")
        if self.document_overlap and self.packing != "documents":
            raise ValueError(f"document_overlap={self.document_overlap} is for packing='documents'")

    @property
    def isolates(self) -> bool:
        """Whether the rows hold documents that do not see each other."""
        return self.packing == "documents" or self.isolate_documents


class Stream(Protocol):
    """The endless, numbered examples of a run: number n is the same whoever asks, on however many hosts, in any batch."""

    @property
    def size(self) -> int:
        """Examples in an epoch."""

    @property
    def name(self) -> str:
        """Name of the corpus, for messages."""

    def batch(self, numbers: np.ndarray) -> HostBatch:
        """Returns arrays [n, ...], always of the same shapes and types but for n, for the numbers int64 [n]."""

    def describe(self, numbers: np.ndarray) -> str:
        """Returns which examples these are, for messages."""


@dataclasses.dataclass(frozen=True)
class CorpusStream:
    """The windows, pairs or packed documents of one corpus, each once an epoch, corrupted by the objectives."""

    reader: Any  # FullWindows, SentencePairs or PackedDocuments
    objectives: dict[str, Any]
    seed: int
    is_static: bool
    is_shuffled: bool
    examples_of_phase: range = range(0)  # their numbers; of none, there is no progress

    @classmethod
    def build(
        cls,
        corpus: Corpus,
        tokenizer: Tokenizer,
        config: DataConfig,
        objectives: dict[str, Any],
        seed: int,
        is_shuffled: bool = True,
        examples_of_phase: range = range(0),
    ) -> "CorpusStream":
        """Raises UserError: a tokenizer that did not make the corpus, an unknown masking, or too short sequences."""
        corpus.check_tokenizer(tokenizer, "prepare the corpus with the run's tokenizer, or start a new run")
        if config.masking not in MASK_TIMES:
            raise UserError(f"data.masking={config.masking!r} is not one of {', '.join(MASK_TIMES)}")
        if config.sequence_length < 8:
            raise UserError(f"data.sequence_length={config.sequence_length} leaves no space for text; use at least 8")
        pairing = [objective for objective in objectives.values() if objective.makes_pairs]
        length = config.sequence_length
        if pairing:
            if config.isolates:
                remedy = "leave out data.packing and data.isolate_documents, or that objective"
                raise UserError(f"an objective makes pairs, whose rows hold nothing else; {remedy}")
            reader: Any = SentencePairs(corpus, tokenizer, length, seed, config.short_seq_prob, pairing[0])
        elif config.packing == "documents":
            reader = PackedDocuments(corpus, tokenizer, length, seed, config.document_overlap)
        else:
            reader = FullWindows(corpus, tokenizer, length, seed, config.isolate_documents)
        return cls(reader, objectives, seed, config.masking == "static", is_shuffled, examples_of_phase)

    @property
    def size(self) -> int:
        """Examples in an epoch."""
        return self.reader.size

    @cached_property
    def order(self) -> Order | OrderOfBlocks:
        """Which example each number is."""
        return self.reader.order(self.seed, self.is_shuffled)

    def epochs_and_indices(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the epochs and indices [n] of numbers [n]."""
        return self.order.epochs_and_indices(numbers)

    def progress(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the share of the phase that lies before numbers [n], float64 [n]."""
        phase = self.examples_of_phase
        return np.clip((numbers - phase.start) / len(phase), 0.0, 1.0) if phase else np.zeros(len(numbers))

    def batch(self, numbers: np.ndarray) -> HostBatch:
        """Returns examples cut, paired, joined and corrupted."""
        numbers = np.asarray(numbers)
        return self.examples(*self.epochs_and_indices(numbers), self.progress(numbers))

    def examples(self, epochs: np.ndarray, indices: np.ndarray, progress: np.ndarray | float = 0.0) -> HostBatch:
        """Returns the examples of epochs [n] and indices [n], as they are at some progress [n] of the phase."""
        epochs = np.zeros_like(epochs) if self.is_static else epochs
        return self.corrupt(self.reader.rows(epochs, indices), epochs, indices, progress)

    def corrupt(
        self, batch: HostBatch, epochs: np.ndarray, indices: np.ndarray, progress: np.ndarray | float = 0.0
    ) -> HostBatch:
        """Returns the batch with the corruption and the labels of every objective."""
        keys = random_numbers.row_keys(self.seed, epochs, indices)  # with the objective's name folded in below
        batch = batch | {PROGRESS: np.broadcast_to(np.float64(progress), epochs.shape)}
        for name, objective in self.objectives.items():
            batch = objective.corrupt(batch, random_numbers.fold_in(keys, name))
        return {name: array for name, array in batch.items() if name not in (PROGRESS, *self.reader.notes)}

    @property
    def name(self) -> str:
        """Name of the corpus."""
        return self.reader.corpus.directory.name

    def describe(self, numbers: np.ndarray) -> str:
        """Names the first examples by epoch and index, and how many more there are."""
        return self.order.describe(numbers)


# ---------------------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------------------


def training_stream(
    config: DataConfig,
    tokenizer: Tokenizer,
    objectives: dict[str, Any],
    seed: int,
    examples_of_phase: range = range(0),
    examples_read: dict[str, int] | None = None,
) -> Stream:
    """Opens the stream that a config describes.

    Args:
      config: of the phase.
      tokenizer: of the run.
      objectives: by name, which corrupt the examples.
      seed: of the order and of all that is random.
      examples_of_phase: numbers of the examples that are read in the phase, which give their progress; 0 for all if empty.
      examples_read: how many examples of each corpus were read in earlier phases, after which it goes on. Those of this phase
        are added.

    Raises:
      UserError: as `open_corpus` and the stream's `build`, or streams that cannot be mixed.
    """
    counts = counts_of(config)
    numbers = taken(len(examples_of_phase), list(counts.values()))
    examples_read = {} if examples_read is None else examples_read
    first, firsts = examples_of_phase.start, [examples_read.get(folder, 0) for folder in counts]
    streams = []
    for folder, start, number in zip(counts, firsts, numbers, strict=True):
        of_folder = dataclasses.replace(config, corpus=folder)
        streams.append(_open_stream(of_folder, tokenizer, objectives, seed, range(start, start + number)))
        examples_read[folder] = start + number
    if firsts == [first]:
        return streams[0]
    check_same_fields(streams)
    return Mixture(streams, list(counts.values()), first, firsts)


def counts_of(config: DataConfig) -> dict[str, int]:
    """Returns how many of `ROUND` examples each corpus of a config has, by folder.

    Raises:
      UserError: as `parse_mixture` and `open_corpus`, or a folder named twice.
    """
    if not config.mixture_temperature:
        return parse_mixture(config.corpus, config.mixture)
    folders = [config.corpus, *config.mixture]
    if twice := {folder for folder in folders if folders.count(folder) > 1}:
        raise UserError(f"data.mixture: {min(twice)} is there twice; name each folder once")
    if shares := [entry for entry in config.mixture if re.match(r"[0-9.]+:", entry)]:
        problem = f"{shares[0]!r} has a share, but with data.mixture_temperature shares follow sizes"
        raise UserError(f"data.mixture: {problem}; write folders alone, or leave out the temperature")
    sizes = {folder: open_corpus(folder, "train").num_tokens for folder in folders}
    return counts_by_size(sizes, config.mixture_temperature)


def _open_stream(
    config: DataConfig, tokenizer: Tokenizer, objectives: dict[str, Any], seed: int, examples_of_phase: range
) -> Stream:
    """Opens the stream of a corpus: another kind of stream is chosen here."""
    corpus = open_corpus(config.corpus, "train", config.cache_megabytes)
    if isinstance(corpus, Instances):
        options = config.masking, config.sequence_length
        return InstanceStream.build(corpus, tokenizer, *options, objectives, seed, is_shuffled=True)
    return CorpusStream.build(corpus, tokenizer, config, objectives, seed, examples_of_phase=examples_of_phase)


def held_out_stream(config: DataConfig, tokenizer: Tokenizer, objectives: dict[str, Any]) -> Stream:
    """Opens the held-out examples: the same, in the same order and with the same masks, for every run of these objectives.

    Raises:
      UserError: as `training_stream`.
    """
    corpus = open_corpus(config.corpus, "validation", config.cache_megabytes)
    if isinstance(corpus, Instances):
        options = "static", config.sequence_length
        return InstanceStream.build(corpus, tokenizer, *options, objectives, seed=0, is_shuffled=False)
    static = dataclasses.replace(config, masking="static")
    objectives = {name: objective.for_evaluation() for name, objective in objectives.items()}
    return CorpusStream.build(corpus, tokenizer, static, objectives, seed=0, is_shuffled=False)


def open_corpus(folder: str, split: str, cache_megabytes: int = CACHE_MEGABYTES) -> Corpus | Instances:
    """Opens a split of what `data.corpus` names.

    Raises:
      UserError: no corpus is named, or as `Corpus.open` and `Instances.open`.
    """
    if not folder:  # the run of an imported model has none
        raise UserError("data.corpus is empty; set it to a folder made by tools/prepare_corpus.py")
    if not is_url(folder) and holds_instances(folder):
        return Instances.open(folder, split)
    return Corpus.open(folder, split, cache_megabytes)


def evaluation_batches(stream: Stream, batch_size: int, rows: np.ndarray, max_examples: int) -> Iterator[HostBatch]:
    """Yields `rows` of batches of the first `max_examples` examples, each once; rows that fill the last batch weigh nothing."""
    num_examples = min(max_examples, stream.size)
    for start in range(0, num_examples, batch_size):
        numbers = start + rows
        batch = stream.batch(np.minimum(numbers, num_examples - 1))
        batch |= {"example_numbers": numbers.astype(np.int32)}  # of random keys, so that these depend on nothing else
        for name in batch:
            if name.endswith("weights"):
                batch[name][numbers >= num_examples] = 0
        yield batch

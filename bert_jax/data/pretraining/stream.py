"""The chain from a prepared corpus to batches. A batch is a pure function of (corpus, config, seed, step)."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from bert_jax.data.corpus.format import Corpus
from bert_jax.data.pretraining import windows as examples
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import MOST_LISTED, UserError

HostBatch = dict[str, np.ndarray]
MASKINGS = ("dynamic", "static")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    corpus: str = ""  # folder made by tools/prepare_corpus.py
    sequence_length: int = 128  # tokens of an example, special tokens counted in
    masking: str = "dynamic"  # 'static': an example is cut, paired and masked the same way in every epoch
    short_seq_prob: float = 0.1  # of pairs, those cut to a random shorter length (create_pretraining_data.py)
    prefetch: int = 16  # batches made ahead
    workers: int = 0  # processes that make them; 0: threads of this one


@dataclasses.dataclass(frozen=True)
class ExampleStream:
    """The endless, numbered examples of a run: number n is the same whoever asks, on however many hosts."""

    make: Any  # FullWindows or SentencePairs
    objectives: dict[str, Any]
    seed: int
    is_static: bool

    @classmethod
    def build(
        cls, corpus: Corpus, tokenizer: Tokenizer, config: DataConfig, objectives: dict[str, Any], seed: int
    ) -> "ExampleStream":
        """Raises UserError: a tokenizer that did not make the corpus, an unknown masking, or too short sequences."""
        corpus.check_tokenizer(tokenizer, "prepare the corpus with the run's tokenizer, or start a new run")
        if config.masking not in MASKINGS:
            raise UserError(f"data.masking={config.masking!r} is not one of {', '.join(MASKINGS)}")
        if config.sequence_length < 8:
            raise UserError(f"data.sequence_length={config.sequence_length} leaves no room for text; use at least 8")
        pairing = [objective for objective in objectives.values() if objective.makes_pairs]
        if pairing:
            make: Any = examples.SentencePairs(
                corpus, tokenizer, config.sequence_length, seed, config.short_seq_prob, pairing[0]
            )
        else:
            make = examples.FullWindows(corpus, tokenizer, config.sequence_length, seed)
        return cls(make, objectives, seed, config.masking == "static")

    @property
    def epoch_size(self) -> int:
        """Examples in an epoch."""
        return len(self.make)

    def example(self, epoch: int, index: int) -> examples.Example:
        """One example, cut, paired, joined and corrupted."""
        epoch = 0 if self.is_static else epoch
        rng = examples.generator(self.seed, epoch, index)
        example = self.make(epoch, index, rng)
        for objective in self.objectives.values():
            example = objective.corrupt(example, rng)
        return example


class Numbered(Protocol):
    """Examples that can be asked for by epoch and index."""

    @property
    def seed(self) -> int: ...

    @property
    def epoch_size(self) -> int: ...

    def example(self, epoch: int, index: int) -> examples.Example: ...


def training_batches(
    stream: Numbered,
    batch_size: int,
    rows: np.ndarray,
    first_step: int,
    num_steps: int,
    num_threads: int = 2,
    prefetch: int = 16,
) -> Iterator[HostBatch]:
    """Batches of steps `first_step` to `num_steps` - 1: this process's `rows` of each, arrays [len(rows), ...]."""
    import grain  # lazy import: it is slow, and only training needs it

    return iter(
        grain.MapDataset.range(first_step * len(rows), num_steps * len(rows))
        .map(lambda n: n // len(rows) * batch_size + int(rows[n % len(rows)]))
        .map(lambda number: examples.shuffled(number, stream.epoch_size, stream.seed))
        .map(lambda place: stream.example(*place))
        .batch(len(rows))
        .to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch))
    )


def evaluation_batches(stream: Any, batch_size: int, rows: np.ndarray, max_examples: int) -> Iterator[HostBatch]:
    """The first `max_examples` examples of epoch 0 in order, each once; what only fills the last batch weighs nothing."""
    stream = getattr(stream, "stream", stream)
    num_examples = min(max_examples, stream.epoch_size)
    for start in range(0, num_examples, batch_size):
        examples_of_rows = []
        for number in start + rows:
            example = stream.example(0, min(int(number), num_examples - 1))
            if number >= num_examples:
                example = {name: np.zeros_like(a) if name.endswith("weights") else a for name, a in example.items()}
            examples_of_rows.append(example)
        yield {name: np.stack([example[name] for example in examples_of_rows]) for name in examples_of_rows[0]}


def describe_batch(stream: Numbered, step: int, batch_size: int) -> str:
    """Describes the first examples of a batch and how many more it has, for messages: 'epoch 2: 17, 4 and 500 more'."""
    rows = range(min(batch_size, MOST_LISTED))
    places = [examples.shuffled(step * batch_size + row, stream.epoch_size, stream.seed) for row in rows]
    epochs = sorted({epoch for epoch, _ in places})
    shown = "; ".join(f"epoch {e}: {', '.join(str(index) for epoch, index in places if epoch == e)}" for e in epochs)
    return shown + (f" and {batch_size - MOST_LISTED} more" if batch_size > MOST_LISTED else "")


class _Adapter:  # replaced by vectorised streams
    def __init__(self, stream):
        self.stream = stream

    def batch(self, numbers):
        examples_ = [
            self.stream.example(*examples.shuffled(int(n), self.stream.epoch_size, self.stream.seed)) for n in numbers
        ]
        return {name: np.stack([example[name] for example in examples_]) for name in examples_[0]}

    def describe(self, numbers):
        return describe_batch(self.stream, int(numbers[0]) // len(numbers), len(numbers))


Stream = Any


def make_stream(config, split, tokenizer, objectives, seed):
    if not config.corpus:
        raise UserError("data.corpus is empty; set it to a folder made by tools/prepare_corpus.py")
    return _Adapter(ExampleStream.build(Corpus.open(config.corpus, split), tokenizer, config, objectives, seed))

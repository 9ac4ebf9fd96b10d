"""Windows and pairs: example (epoch, index) of a prepared corpus, found without reading anything before it.

Window `index` covers `stride` tokens of the stream, from `index * stride + phase(epoch)`; the phase moves from epoch to
epoch, so that window borders fall elsewhere each time. Shapes: L sequence length.
"""

from typing import Any, NamedTuple

import numpy as np

from bert_jax.data.corpus.format import Corpus
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError

Example = dict[str, Any]  # arrays, and scalars
OTHER_DOCUMENT_TRIES = 10  # create_pretraining_data.py, create_instances_from_document


def shuffled(number: int, epoch_size: int, seed: int) -> tuple[int, int]:
    """Epoch and index of the `number`-th example of a run; within an epoch each index comes once, in random order."""
    import grain  # lazy import: it is slow, and predict needs no order

    epoch, position = divmod(number, epoch_size)
    # index_shuffle takes 32 bits of seed; the epochs' permutations are unrelated, not shifted copies.
    epoch_seed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    index = grain.experimental.index_shuffle(position, max_index=epoch_size - 1, seed=epoch_seed, rounds=4)
    return epoch, index


def generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one example."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, index])))


class Windows:
    """The corpus cut into windows of `stride` tokens; the end of each shard runs on into its beginning."""

    def __init__(self, corpus: Corpus, stride: int, seed: int):
        self.corpus = corpus
        self.stride = stride
        self.seed = seed
        # The tail of a shard that fills no window is left out, another one in every epoch. A tiny shard is one window.
        self._first_window = np.concatenate([[0], np.cumsum(np.maximum(corpus.shard_tokens // stride, 1))])

    def __len__(self) -> int:
        return int(self._first_window[-1])

    def place(self, epoch: int, index: int) -> tuple[int, int]:
        """Shard and position at which the window starts."""
        shard = int(np.searchsorted(self._first_window, index, side="right")) - 1
        phase = int(generator(self.seed, epoch, shard).integers(self.stride)) if epoch else 0
        start = (index - int(self._first_window[shard])) * self.stride + phase
        return shard, start % int(self.corpus.shard_tokens[shard])

    def read(self, epoch: int, index: int) -> np.ndarray:
        """Token ids int32 [stride], separators between documents included; fewer only in a shard of fewer tokens."""
        shard, start = self.place(epoch, index)
        tokens = self.corpus.read(shard, start, self.stride).tokens
        missing = min(self.stride, int(self.corpus.shard_tokens[shard])) - len(tokens)
        return np.concatenate([tokens, self.corpus.read(shard, 0, missing).tokens]) if missing else tokens


class FullWindows:
    """Examples of one segment: [CLS] window [SEP], full to the last position, across documents (RoBERTa's FULL-SENTENCES)."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, length: int, seed: int):
        self.windows = Windows(corpus, length - tokenizer.num_special_tokens(1), seed)
        self.tokenizer = tokenizer
        self.length = length

    def __len__(self) -> int:
        return len(self.windows)

    def __call__(self, epoch: int, index: int, rng: np.random.Generator) -> Example:
        return join(self.tokenizer, self.length, self.windows.read(epoch, index))


class SentencePairs:
    """Examples of two segments: [CLS] a [SEP] b [SEP], made of sentences of one document and, perhaps, of another.

    The rules are those of google-research/bert create_pretraining_data.py, but for one: there a document is walked from its
    start, sentences that a random second segment leaves over are put back, and so no example can be made without those
    before it. Here pair i starts at the first sentence of window i, in a document of that window.
    """

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, length: int, seed: int, short_seq_prob: float, objective):
        self.room = length - tokenizer.num_special_tokens(2)
        self.windows = Windows(corpus, self.room, seed)
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.length = length
        self.short_seq_prob = short_seq_prob
        self.objective = objective

    def __len__(self) -> int:
        return len(self.windows)

    def __call__(self, epoch: int, index: int, rng: np.random.Generator) -> Example:
        target = int(rng.integers(2, self.room + 1)) if rng.random() < self.short_seq_prob else self.room
        shard, start = self.windows.place(epoch, index)
        chunk = self._chunk(shard, start, target, rng)
        sentences = chunk.sentence_starts
        cut = int(sentences[rng.integers(1, len(sentences))]) if len(sentences) > 1 else len(chunk.tokens)
        segments = PairDraft(chunk.tokens[:cut], chunk.tokens[cut:], chunk.document, target, self)
        a, b, labels = self.objective.pair(segments, rng)
        a, b = truncated_pair(a, b, target, rng)
        return join(self.tokenizer, self.length, a, b) | labels

    def other_text(self, document: int, target: int, rng: np.random.Generator) -> np.ndarray:
        """At least `target` tokens in whole sentences from a random place outside `document`, or up to its document's end.

        Places are drawn evenly over the corpus, so a document's share of them is its length (the original draws documents
        evenly, for which one would have to know where each starts). Empty when no try hits another document.
        """
        starts = np.cumsum(self.corpus.shard_tokens)
        for _ in range(OTHER_DOCUMENT_TRIES):
            place = int(rng.integers(starts[-1]))
            shard = int(np.searchsorted(starts, place, side="right"))
            start = place - int(starts[shard] - self.corpus.shard_tokens[shard])
            chunk = self._chunk(shard, start, target, rng)
            if chunk.document != document:
                return chunk.tokens
        return np.zeros(0, np.int32)

    def _chunk(self, shard: int, start: int, target: int, rng: np.random.Generator) -> "Chunk":
        """Consecutive whole sentences of one document, at least `target` tokens unless it ends before.

        The document is the one that holds a random token of the window at `start`, so a window that straddles documents
        takes each with the chance of its share.

        Raises:
          UserError: there are only separators, which no corpus of ours has.
        """
        # The window's first sentence may have begun before it, and the last one may reach beyond the target.
        length = 3 * self.windows.stride
        span = self.corpus.read(shard, start, length)
        if np.array_equal(span.tokens, [self.tokenizer.sep_id]):  # the last separator of a shard: go on at its start
            span = self.corpus.read(shard, 0, length)
        is_separator = span.tokens == self.tokenizer.sep_id
        text, separators = np.flatnonzero(~is_separator), np.flatnonzero(is_separator)
        if not len(text):
            where = f"{self.corpus.directory}: shard {shard}"
            raise UserError(f"{where} has nothing but separators from token {start}; prepare the corpus again")
        # The rest of a sentence that began before is left out; without it, a document may have no more in the window.
        whole = np.flatnonzero(span.sentence_starts[: self.windows.stride])
        text = text[text >= whole[0]] if len(whole) else text
        anchor = text[rng.integers(min(self.windows.stride, len(text)))]
        number = int(np.searchsorted(separators, anchor))  # of the document, within the span
        begin = int(separators[number - 1]) + 1 if number else 0
        end = int(separators[number]) if number < len(separators) else len(span.tokens)
        starts = begin + np.flatnonzero(span.sentence_starts[begin:end])
        if len(starts) == 0:  # in the middle of a very long sentence
            starts = np.array([begin])
        borders = np.append(starts, end) - starts[0]
        kept = min(int(np.searchsorted(borders, target)), len(starts))
        tokens = span.tokens[starts[0] : starts[0] + borders[kept]]
        return Chunk(tokens, borders[:kept], span.document + number)


class Chunk(NamedTuple):
    """Consecutive sentences of one document."""

    tokens: np.ndarray
    sentence_starts: np.ndarray  # positions within `tokens`, the first of them 0
    document: int


class PairDraft(NamedTuple):
    """Two consecutive segments of a document, as objectives that make pairs see them."""

    a: np.ndarray
    b: np.ndarray
    document: int
    target: int
    pairs: SentencePairs

    def from_another_document(self, rng: np.random.Generator) -> np.ndarray:
        return self.pairs.other_text(self.document, max(1, self.target - len(self.a)), rng)


def kept_lengths(length_a: int, length_b: int, room: int) -> tuple[int, int]:
    """Tokens to keep of two segments: the longer one loses tokens, the second where both are as long, until both fit."""
    kept_b = min(length_b, max(room - length_a, room // 2))
    return min(length_a, room - kept_b), kept_b


def truncated_pair(a: np.ndarray, b: np.ndarray, room: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Both segments cut to `room` tokens in all, each token dropped at the front or at the back by a coin.

    Source: google-research/bert create_pretraining_data.py, truncate_seq_pair.
    """

    def cut(segment: np.ndarray, kept: int) -> np.ndarray:
        front = int(rng.binomial(len(segment) - kept, 0.5))
        return segment[front : front + kept]

    kept_a, kept_b = kept_lengths(len(a), len(b), room)
    return cut(a, kept_a), cut(b, kept_b)


def join(tokenizer: Tokenizer, length: int, *segments: np.ndarray) -> Example:
    """[CLS] a [SEP] or [CLS] a [SEP] b [SEP], padded to `length`; RoBERTa's `<s> a </s></s> b </s>` where the tokenizer has it.

    An empty second segment keeps its separator. The separators between two segments are of the first one's token type.
    """
    input_ids = np.full(length, tokenizer.pad_id, np.int32)
    token_type_ids = np.zeros(length, np.int32)
    input_ids[0] = tokenizer.cls_id
    end = 1
    for number, segment in enumerate(segments):
        separators = tokenizer.separators_between if number < len(segments) - 1 else 1
        start, stop = end, end + len(segment)
        end = stop + separators
        input_ids[start:stop] = segment
        input_ids[stop:end] = tokenizer.sep_id
        token_type_ids[start:end] = number
    attention_mask = (np.arange(length) < end).astype(np.int32)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": token_type_ids,
        "example_weights": np.float32(1.0),
    }

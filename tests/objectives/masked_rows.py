"""Rows to mask, a vocabulary with words, and what was predicted of them."""

import dataclasses

import numpy as np
from hypothesis import strategies as st

from bert_jax.objectives.mlm import Objective, Options
from bert_jax.random_numbers import row_keys

PAD, UNK, CLS, SEP, MASK, FIRST = range(6)


@dataclasses.dataclass(frozen=True)
class Words:
    """A vocabulary of 60 tokens, every third of which begins a word."""

    vocab_size: int = 60
    mask_id: int = MASK
    special_ids = np.array([PAD, UNK, CLS, SEP, MASK])
    word_starts = np.arange(60) % 3 == 0


VOCABULARY = Words()


def example_of(length: int, segments: list[int], rng: np.random.Generator) -> dict:
    """[CLS] a [SEP] (b [SEP]), padded."""
    ids = np.full(length, PAD, np.int32)
    ids[0], end = CLS, 1
    for size in segments:
        ids[end : end + size] = rng.integers(FIRST, VOCABULARY.vocab_size, size)
        ids[end + size] = SEP
        end += size + 1
    return {"input_ids": ids, "attention_mask": (np.arange(length) < end).astype(np.int32)}


def stacked(examples: list[dict]) -> dict:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def repeated(ids: list[int], count: int) -> dict:
    """A batch of rows that are alike."""
    input_ids = np.tile(np.array(ids, np.int32), (count, 1))
    return {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}


def keys_of(batch: dict, seed: int = 0) -> np.ndarray:
    return row_keys(seed, np.arange(len(batch["input_ids"])))


def corrupt(options: Options, batch: dict, seed: int = 0) -> dict:
    return Objective(options, VOCABULARY).corrupt(batch, keys_of(batch, seed))


@st.composite
def batches(draw):
    length, rng = draw(st.integers(8, 64)), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def example():
        a = draw(st.integers(0, length - 3))
        b = draw(st.none() | st.integers(0, length - 3 - a))
        return example_of(length, [a] if b is None else [a, b], rng)

    examples = [example() for _ in range(draw(st.integers(1, 4)))]
    return stacked(examples) | {"progress": rng.random(len(examples))}


def predicted(batch: dict) -> list[np.ndarray]:
    """The predicted positions of each row."""
    return [places[weights > 0] for places, weights in zip(batch["mlm_positions"], batch["mlm_weights"], strict=True)]


def many(options: Options, count: int = 3000, length: int = 130) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(originals, corrupted ids, numbers of predictions) of many full examples."""
    rng = np.random.default_rng(0)
    corrupted = corrupt(options, stacked([example_of(length, [length - 2], rng) for _ in range(count)]))
    is_predicted = corrupted["mlm_weights"] > 0
    replaced = np.take_along_axis(corrupted["input_ids"], corrupted["mlm_positions"], axis=1)
    return corrupted["mlm_labels"][is_predicted], replaced[is_predicted], is_predicted.sum(axis=1)


def close(share: float, expected: float, trials: int, what: str) -> None:
    deviation = (expected * (1 - expected) / trials) ** 0.5
    assert abs(share - expected) < 5 * deviation + 1e-9, f"{what}: {share:.4f} instead of {expected:.4f}"

"""Parts of the task on words: labels, splitting sentences into examples, and predicted entities as JSON."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bert_jax.data.datasets.conll import Sentence
from bert_jax.data.datasets.schemes import PLAIN, Entity, labels_of
from bert_jax.data.words import Word, whole_characters
from bert_jax.tasks.finetuning.labels import in_order
from bert_jax.tasks.finetuning.packing import Item


def labels_in(sentences: Sequence[Sentence], scheme: str) -> list[str]:
    """Returns all tags of the scheme for the types in sentences or, in IOB1, only the B-TYPE tags that occur."""
    tags = {tag for sentence in sentences for tag in sentence.tags}
    if scheme == PLAIN:
        return in_order(tags)
    types = in_order({entity.type for sentence in sentences for entity in sentence.entities})
    return [tag for tag in labels_of(types, scheme) if scheme != "IOB1" or tag[0] != "B" or tag in tags]


def word_runs(
    sentences: Sequence[Sentence], sizes: Sequence[int], longest: int, joins_sentences: bool
) -> list[tuple[int, int]]:
    """Returns the words of each example as (first, last + 1), indices into all words of all sentences.

    Args:
      sentences: sentences; long ones are split between two words.
      sizes: number of tokens of each word.
      longest: maximum number of tokens in an example.
      joins_sentences: whether sentences of a document that fit together become one example.
    """
    ends = np.concatenate([[0], np.cumsum(sizes)])  # tokens before each word
    runs = list[tuple[int, int]]()
    word, document = 0, None
    for sentence in sentences:
        after = word + len(sentence.words)
        goes_on = joins_sentences and sentence.document == document
        if goes_on and ends[after] - ends[runs[-1][0]] <= longest:
            runs[-1] = (runs[-1][0], after)
            word = after
        while word < after:  # once, except for a sentence longer than an example
            cut = min(after, max(word + 1, int(np.searchsorted(ends, ends[word] + longest, side="right")) - 1))
            runs.append((word, cut))
            word = cut
        document = sentence.document
    return runs


def words_only(items: Sequence[Item], outputs: Sequence[dict[str, np.ndarray]], name: str) -> np.ndarray:
    """Returns an output of the tokens, [N, ...], for the first pieces of all words of all examples."""
    pairs = zip(items, outputs, strict=True)
    return np.concatenate([output[name][item.tokens["token_weights"] > 0] for item, output in pairs])


def entity_answer(entity: Entity, words: Sequence[Word], text: str, confidence: np.ndarray) -> dict[str, Any]:
    """Returns an entity of a text as JSON, extended to whole grapheme clusters; `confidence` has a value for each word."""
    start, end = whole_characters(text, words[entity.first].start, words[entity.after - 1].end)
    score = float(confidence[entity.first : entity.after].min())
    return {"type": entity.type, "text": text[start:end], "start": start, "end": end, "score": score}

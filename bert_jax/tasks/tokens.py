"""Labels for words, as in named-entity recognition, from files of columns; scored by entity, with seqeval.

A word's first piece carries its label (Devlin et al. 2019, section 5.3). Shapes: R rows, L length, N words, C labels.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import special

from bert_jax import run_folder
from bert_jax.data import examples
from bert_jax.data.conll import OUTSIDE, Sentence, as_bio, entities, read_sentences, with_predictions
from bert_jax.data.words import Word, located, words_of
from bert_jax.errors import UserError, listed
from bert_jax.model.build import Params
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import TokenClassifier
from bert_jax.objectives.base import BaseOptions, Batch, Loss
from bert_jax.tasks.finetuning.options import FineTuningConfig, split_path, temperature_for, tokenizer_for
from bert_jax.tasks.finetuning.packing import Item
from bert_jax.tasks.finetuning.scores import best_temperature
from bert_jax.tasks.finetuning.task import FineTuning, Output
from bert_jax.train.metrics import Row

CONTEXTS = ("sentence", "document")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    train: str = ""  # file of columns: a word first, its tag (BIO or IOB1) last, blank lines between sentences
    validation: str = ""
    context: str = "sentence"  # 'document': an example is as many sentences of a document, one after the other, as fit
    sequence_length: int = 128  # tokens, special tokens counted in; what does not fit is another example


@dataclasses.dataclass(frozen=True)
class Config(FineTuningConfig):
    task: str = "tokens"
    data: DataConfig = DataConfig()


@dataclasses.dataclass(frozen=True)
class TokenLabels:
    """The objective: cross-entropy of the label of each word's first piece."""

    num_labels: int
    dropout: float
    options: BaseOptions = BaseOptions()

    def head(self, config: EncoderConfig, rngs) -> TokenClassifier:
        return TokenClassifier(config, self.num_labels, self.dropout, rngs)

    def weight(self, batch: Batch) -> jax.Array:
        return batch["token_weights"].sum()

    def positions(self, batch: Batch) -> jax.Array | None:
        return jnp.broadcast_to(jnp.arange(batch["input_ids"].shape[1]), batch["input_ids"].shape)

    def loss(self, model, output, batch: Batch, key) -> Loss:
        logits_RxLxC = model.heads["token"](output.last_hidden_state, key)
        losses_RxL = optax.softmax_cross_entropy_with_integer_labels(logits_RxLxC, batch["token_labels"])
        return Loss((losses_RxL * batch["token_weights"]).sum(), {}, {"token_logits": logits_RxLxC})


@dataclasses.dataclass(frozen=True)
class Task(FineTuning):
    """See tasks/base.py."""

    labels: list[str]

    input_fields = ("text",)
    first_score = "f1"

    @classmethod
    def create(cls, config: Config, workdir: Path) -> "Task":
        data = config.data
        if data.context not in CONTEXTS:
            raise UserError(f"data.context={data.context!r} is none of {', '.join(CONTEXTS)}")
        tokenizer = tokenizer_for(config, workdir)
        known = run_folder.read_value(workdir, run_folder.LABELS, [])
        labels = known or labels_of(read_sentences(split_path(data, "train")))
        if labels == [OUTSIDE]:
            raise UserError(f"{data.train}: every tag is {OUTSIDE}; there is nothing to find")
        return cls(config, tokenizer, temperature_for(workdir), labels)

    @cached_property
    def objectives(self) -> dict[str, TokenLabels]:
        return {"token": TokenLabels(len(self.labels), self.given.classifier_dropout)}

    # ------------------------------------------------------------------------------------------------------- examples

    @cached_property
    def training_items(self) -> list[Item]:
        return self._items(self._training)

    @cached_property
    def _training(self) -> list[Sentence]:
        return self.sentences("train")

    @cached_property
    def _held_out(self) -> list[Sentence]:
        return self.sentences("validation")

    def sentences(self, split: str) -> list[Sentence]:
        """All sentences of a split."""
        path = split_path(self.given.data, split)
        sentences = read_sentences(path)
        for sentence in sentences:
            if unknown := set(sentence.tags) - set(self.labels):
                raise UserError(
                    f"{path}: sentence in line {sentence.line}: tag {min(unknown)} is not among those trained on, "
                    f"{listed(self.labels)}; leave it out, or train on it"
                )
        return sentences

    @cached_property
    def held_out_items(self) -> list[Item]:
        return self._items(self._held_out)

    def _items(self, sentences: Sequence[Sentence]) -> list[Item]:
        number_of = {label: number for number, label in enumerate(self.labels)}
        tags = [tag for sentence in sentences for tag in sentence.tags]
        # The blank is part of a word's first piece in byte-level BPE, and lost in the others.
        pieces = self.tokenizer.encode([f" {word}" for sentence in sentences for word in sentence.words])
        pieces = [ids if len(ids) else np.array([self.tokenizer.unk_id], np.int32) for ids in pieces]
        room = self.given.data.sequence_length - self.tokenizer.num_special_tokens(1)
        items = []
        for first, after in word_runs(sentences, list(map(len, pieces)), room, self.given.data.context == "document"):
            of_run = pieces[first:after]
            ids = np.concatenate(of_run)[:room]  # a single word may be longer
            starts = 1 + np.cumsum([0, *map(len, of_run[:-1])])  # [CLS] is before them
            example = examples.join(self.tokenizer, len(ids) + self.tokenizer.num_special_tokens(1), ids)
            tokens = {name: example[name] for name in ("input_ids", "token_type_ids")}
            size = len(example["input_ids"])
            tokens |= {"token_labels": np.zeros(size, np.int32), "token_weights": np.zeros(size, np.float32)}
            tokens["token_labels"][starts] = [number_of[tag] for tag in tags[first:after]]
            tokens["token_weights"][starts] = 1.0
            items.append(Item(tokens, {}))
        return items

    # ----------------------------------------------------------------------------------------- scores and predictions

    def judged(self, outputs: list[Output], tunes: bool) -> tuple[Row, dict[str, Any]]:
        """F1, precision and recall of whole entities, together and of each type; and the held-out file with another column,
        the tags predicted."""
        logits_NxC = logits_of_words(self.held_out_items, outputs)
        predicted = self._tags(self._held_out, logits_NxC)
        row = entity_scores([list(sentence.tags) for sentence in self._held_out], predicted)
        text = "".join(with_predictions(split_path(self.given.data, "validation"), predicted))
        files: dict[str, Any] = {f"{run_folder.PREDICTIONS}/validation.conll": text}
        if tunes and self.given.calibrated:
            gold = [self.labels.index(tag) for sentence in self._held_out for tag in sentence.tags]
            row["temperature"] = files[run_folder.TEMPERATURE] = best_temperature(logits_NxC, np.array(gold))
        return row, files

    def _tags(self, sentences: Sequence[Sentence], logits_NxC: np.ndarray) -> list[list[str]]:
        """The likeliest tags of each sentence, BIO, from the logits of all words."""
        tags = [self.labels[number] for number in logits_NxC.argmax(-1)]
        cuts = np.cumsum([0, *(len(sentence.words) for sentence in sentences)])
        return [as_bio(tags[start:end]) for start, end in itertools.pairwise(cuts)]

    def predict(self, params: Params, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """For each text {'words', 'tags', 'entities': [{'type', 'text', 'start', 'end', 'score'}]}; characters are counted.

        A text is cut into words by `words_of`, or has the list of them as 'words'; a score is the least of the probabilities
        of an entity's tags. Where data.context is 'document', neighbours with the same 'document' are read together.
        """
        words = [words_in(values) for values in inputs]
        documents = [values.get("document", -1 - number) for number, values in enumerate(inputs)]
        sentences = [
            Sentence(tuple(text for text, _, _ in found) or ("",), (OUTSIDE,) * max(1, len(found)), document)
            for found, document in zip(words, documents, strict=True)
        ]
        items = self._items(sentences)
        logits_NxC = logits_of_words(items, self.outputs_of(params, items))
        tags = self._tags(sentences, logits_NxC)
        confidence_N = special.softmax(logits_NxC / self.temperature, axis=-1).max(-1)
        answers, word = [], 0
        for values, found, of_text in zip(inputs, words, tags, strict=True):
            named = [
                {
                    "type": kind,
                    "text": values["text"][found[first].start : found[after - 1].end],
                    "start": found[first].start,
                    "end": found[after - 1].end,
                    "score": float(confidence_N[word + first : word + after].min()),
                }
                for kind, first, after in (entities(of_text) if found else [])
            ]
            answers.append({"words": [text for text, _, _ in found], "tags": of_text[: len(found)], "entities": named})
            word += len(of_text)
        return answers

    @property
    def summary(self) -> str:
        mended = sum(sentence.mended for sentence in (*self._training, *self._held_out))
        of_tags = f"; {mended:,} entities begin with I- in the files, as in IOB1" if mended else ""
        return (
            f"{len(self._training):,} sentences to train on, {len(self._held_out):,} held out{of_tags}; "
            f"labels {listed(self.labels)}"
        )

    @property
    def files(self) -> dict[str, Any]:
        return {run_folder.LABELS: self.labels}


def words_in(values: dict[str, Any]) -> list[Word]:
    """The words of an input of `predict`. Raises UserError where a list is given that is not its text, cut."""
    text, words = values["text"], values.get("words")
    if not isinstance(words, list):
        return words_of(text)
    if not all(isinstance(word, str) for word in words) or (found := located(words, text)) is None:
        raise UserError(
            f"words {str(words)[:80]}: are not those of the text {text[:80]!r}; mend them, or leave them out"
        )
    return found


def word_runs(
    sentences: Sequence[Sentence], sizes: Sequence[int], room: int, joins_sentences: bool
) -> list[tuple[int, int]]:
    """The words of each example: (first, after the last) of all words of all sentences.

    Args:
      sentences: of which a long one is cut, always between two words.
      sizes: tokens of each word.
      room: tokens of an example.
      joins_sentences: those of a document that fit together are one example.
    """
    ends = np.concatenate([[0], np.cumsum(sizes)])  # tokens before each word
    runs = list[tuple[int, int]]()
    word, document = 0, None
    for sentence in sentences:
        after = word + len(sentence.words)
        goes_on = joins_sentences and sentence.document == document
        if goes_on and ends[after] - ends[runs[-1][0]] <= room:
            runs[-1] = (runs[-1][0], after)
            word = after
        while word < after:  # once, but for a sentence that is longer than an example
            cut = min(after, max(word + 1, int(np.searchsorted(ends, ends[word] + room, side="right")) - 1))
            runs.append((word, cut))
            word = cut
        document = sentence.document
    return runs


def logits_of_words(items: Sequence[Item], outputs: list[Output]) -> np.ndarray:
    """The logits [N, C] of all words of all examples: those of their first pieces."""
    rows = zip(items, outputs, strict=True)
    return np.concatenate([output["token_logits"][item.tokens["token_weights"] > 0] for item, output in rows])


def labels_of(sentences: Sequence[Sentence]) -> list[str]:
    """O, and B- and I- of every type that there is."""
    types = sorted({tag[2:] for sentence in sentences for tag in sentence.tags if tag != OUTSIDE})
    return [OUTSIDE, *(f"{prefix}-{name}" for name in types for prefix in "BI")]


def entity_scores(gold: list[list[str]], predicted: list[list[str]]) -> Row:
    """Scores, of BIO tags, of entities that agree in type and extent, by seqeval; 'f1/TYPE' for each type."""
    from seqeval import metrics as seqeval  # here: it imports scikit-learn, and predict needs no score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of types that were never predicted
        report = seqeval.classification_report(gold, predicted, output_dict=True, zero_division=0)
    overall = report["micro avg"]
    types = sorted({tag[2:] for tags in gold for tag in tags if tag != OUTSIDE})  # the same whatever was predicted
    return {
        "f1": float(overall["f1-score"]),
        "precision": float(overall["precision"]),
        "recall": float(overall["recall"]),
        **{f"f1/{name}": float(report[name]["f1-score"]) for name in types},
    }

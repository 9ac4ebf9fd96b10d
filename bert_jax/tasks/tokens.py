"""Labels for words, as in named-entity recognition, from files of columns; scored by entity, with seqeval.

A word's first piece carries its label (Devlin et al. 2019, section 5.3). Shapes: R rows, L length, C labels.
"""

import dataclasses
import itertools
import json
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
from seqeval import metrics as seqeval

from bert_jax import run_folder
from bert_jax.data import examples
from bert_jax.data.conll import OUTSIDE, Sentence, as_bio, entities, read_sentences
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.data.words import words_of
from bert_jax.errors import UserError
from bert_jax.files import write_json
from bert_jax.model.build import Model, Params
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import TokenClassifier
from bert_jax.objectives.base import BaseOptions, Batch, Loss, Losses
from bert_jax.tasks.base import check_sizes, tokenizer_of_run
from bert_jax.tasks.finetuning.options import FineTuningConfig, check_encoder, resolved
from bert_jax.tasks.finetuning.packing import Item
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

    config: Config
    tokenizer: Tokenizer
    losses: Losses
    labels: list[str]

    input_fields = ("text",)

    @classmethod
    def create(cls, config: Config, workdir: Path) -> "Task":
        data = config.data
        if data.context not in CONTEXTS:
            raise UserError(f"data.context={data.context!r} is none of {', '.join(CONTEXTS)}")
        check_encoder(config, workdir)
        tokenizer = tokenizer_of_run(workdir, Path(config.init_from) / run_folder.TOKENIZER)
        check_sizes(config.model, tokenizer, data.sequence_length)
        known = workdir / run_folder.LABELS
        labels = json.loads(known.read_text()) if known.exists() else labels_of(read(data, "train"))
        objective = TokenLabels(len(labels), config.classifier_dropout)
        model = Model.build(config.model, {"token": objective.head})
        draft = cls(config, tokenizer, Losses(model, {"token": objective}), labels)
        num_examples = 0 if config.train.num_steps else len(draft.training_items)
        return dataclasses.replace(draft, config=resolved(config, num_examples, "f1"))

    # ------------------------------------------------------------------------------------------------------- examples

    @cached_property
    def training_items(self) -> list[Item]:
        sentences = read(self.config.data, "train")
        return self._items(sentences, self._runs(sentences))

    @cached_property
    def _held_out(self) -> list[Sentence]:
        return read(self.config.data, "validation")

    @cached_property
    def held_out_items(self) -> list[Item]:
        return self._items(self._held_out, self._runs(self._held_out))

    def _pieces(self, sentences: Sequence[Sentence]) -> list[np.ndarray]:
        """The token ids of each word of all sentences; at least one for each."""
        # The blank is part of a word's first piece in byte-level BPE, and lost in the others.
        pieces = self.tokenizer.encode([f" {word}" for sentence in sentences for word in sentence.words])
        return [ids if len(ids) else np.array([self.tokenizer.unk_id], np.int32) for ids in pieces]

    def _runs(self, sentences: Sequence[Sentence]) -> list[tuple[int, int]]:
        """The words of each example: (first, after the last) of all words of all sentences."""
        sizes = np.array([len(ids) for ids in self._pieces(sentences)])
        ends = np.concatenate([[0], np.cumsum(sizes)])  # tokens before each word
        room = self.config.data.sequence_length - self.tokenizer.num_special_tokens(1)
        runs = list[tuple[int, int]]()
        word, document = 0, -1
        for sentence in sentences:
            after = word + len(sentence.words)
            goes_on = self.config.data.context == "document" and sentence.document == document
            if goes_on and ends[after] - ends[runs[-1][0]] <= room:
                runs[-1] = (runs[-1][0], after)
                word = after
            while word < after:  # once, but for a sentence that is longer than an example
                cut = min(after, max(word + 1, int(np.searchsorted(ends, ends[word] + room, side="right")) - 1))
                runs.append((word, cut))
                word = cut
            document = sentence.document
        return runs

    def _items(self, sentences: Sequence[Sentence], runs: Sequence[tuple[int, int]]) -> list[Item]:
        number_of = {label: number for number, label in enumerate(self.labels)}
        tags = [tag for sentence in sentences for tag in sentence.tags]
        if unknown := set(tags) - set(self.labels):
            raise UserError(f"tag {min(unknown)} is not among those trained on: {', '.join(self.labels)}")
        pieces, room = self._pieces(sentences), self.config.data.sequence_length - self.tokenizer.num_special_tokens(1)
        items = []
        for first, after in runs:
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

    def measure(self, outputs: list[Output]) -> Row:
        """F1, precision and recall of whole entities, together and of each type."""
        return entity_scores([list(sentence.tags) for sentence in self._held_out], self._predicted(outputs))

    def files(self, outputs: list[Output], row: Row) -> dict[str, Any]:
        """A file of columns: word, its tag in the held-out file, the tag predicted."""
        lines = []
        for sentence, predicted in zip(self._held_out, self._predicted(outputs), strict=True):
            lines += [
                f"{' '.join(columns)}\n" for columns in zip(sentence.words, sentence.tags, predicted, strict=True)
            ]
            lines.append("\n")
        return {"validation.conll": "".join(lines)}

    def _predicted(self, outputs: list[Output]) -> list[list[str]]:
        """The tags of each held-out sentence, BIO."""
        probabilities = self._probabilities(self.held_out_items, outputs)
        return [as_bio(tags) for tags in self._tags(self._held_out, [row.argmax(-1) for row in probabilities])]

    def _probabilities(self, items: Sequence[Item], outputs: list[Output]) -> list[np.ndarray]:
        """Of the labels of the words [words, C] of each example."""
        rows = zip(items, outputs, strict=True)
        return [special.softmax(out["token_logits"][item.tokens["token_weights"] > 0], axis=-1) for item, out in rows]

    def _tags(self, sentences: Sequence[Sentence], numbers: Sequence[np.ndarray]) -> list[list[str]]:
        """The tags of each sentence, from the label numbers of the words of all examples."""
        tags = [self.labels[number] for number in np.concatenate(numbers)]
        cuts = np.cumsum([0, *(len(sentence.words) for sentence in sentences)])
        return [tags[start:end] for start, end in itertools.pairwise(cuts)]

    def predict(self, params: Params, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """For each text {'words', 'tags', 'entities': [{'type', 'text', 'start', 'end', 'score'}]}; characters are counted.

        A text is cut into words by `words_of`; a score is the least of the probabilities of an entity's tags.
        """
        words = [words_of(values["text"]) for values in inputs]
        sentences = [
            Sentence(tuple(text for text, _, _ in found) or ("",), (OUTSIDE,) * max(1, len(found)), number)
            for number, found in enumerate(words)
        ]
        items = self._items(sentences, self._runs(sentences))
        probabilities = self._probabilities(items, self.outputs_of(params, items))
        tags = [as_bio(row) for row in self._tags(sentences, [row.argmax(-1) for row in probabilities])]
        sure = np.concatenate([row.max(-1) for row in probabilities])
        answers, word = [], 0
        for values, found, of_text in zip(inputs, words, tags, strict=True):
            named = [
                {
                    "type": kind,
                    "text": values["text"][found[first].start : found[after - 1].end],
                    "start": found[first].start,
                    "end": found[after - 1].end,
                    "score": float(sure[word + first : word + after].min()),
                }
                for kind, first, after in (entities(of_text) if found else [])
            ]
            answers.append({"words": [text for text, _, _ in found], "tags": of_text[: len(found)], "entities": named})
            word += len(of_text)
        return answers

    def save_files(self, workdir: Path, evaluation: Row | None = None) -> None:
        write_json(workdir / run_folder.LABELS, self.labels)


def read(data: DataConfig, split: str) -> list[Sentence]:
    """The sentences of a file of the config."""
    if not getattr(data, split):
        raise UserError(f"data.{split} is empty; set both to files of columns (word ... tag)")
    return read_sentences(getattr(data, split))


def labels_of(sentences: Sequence[Sentence]) -> list[str]:
    """O, and B- and I- of every type that there is."""
    types = sorted({tag[2:] for sentence in sentences for tag in sentence.tags if tag != OUTSIDE})
    return [OUTSIDE, *(f"{prefix}-{name}" for name in types for prefix in "BI")]


def entity_scores(gold: list[list[str]], predicted: list[list[str]]) -> Row:
    """Scores, of BIO tags, of entities that agree in type and extent, by seqeval; 'f1/TYPE' for each type."""
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

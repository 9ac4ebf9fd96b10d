"""Labelling words, from files of columns: named entities, scored by entity, or tags such as parts of speech, scored by word.

A word's first piece carries its label (Devlin et al. 2019, section 5.3). Shapes: N words, C labels.
"""

import dataclasses
import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from bert_jax.data.datasets.conll import Sentence, in_scheme, read_sentences, scheme_of, with_predictions
from bert_jax.data.datasets.schemes import PLAIN, SCHEMES, Entity, entities, labels_of, scheme_of_labels, tags_of
from bert_jax.data.words import Word, whole_characters, words_in
from bert_jax.errors import UserError, listed
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks.common.packing import Item, Output, joined, words_only
from bert_jax.tasks.common.prediction import Answer, Prepared
from bert_jax.tasks.finetuning import options
from bert_jax.tasks.finetuning.loss_terms import TokenLabels
from bert_jax.tasks.finetuning.scores import SCORES, best_temperature, entity_scores
from bert_jax.tasks.finetuning.task import HELD_OUT, TRAIN, FineTuning
from bert_jax.train.writers.base import Row

logger = logging.getLogger(__name__)
CONTEXTS = ("sentence", "document")
PLAIN_SCORES = ("accuracy", "macro_f1")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    train: str = ""  # file of columns: a word first, its tag last, empty lines between sentences
    validation: str = ""  # held-out sentences, in the same format
    context: str = "sentence"  # 'document': an example is as many consecutive sentences of a document as fit
    sequence_length: int = 128  # tokens, including special tokens; the rest of a sentence becomes another example
    # Scheme of the labels: 'IO', 'IOB1', 'IOB2', 'IOBES', 'BILOU', 'BMES', or 'plain' for tags that mark no entities. '': that
    # of the training file, or of an imported model's labels. Files in another scheme are converted.
    scheme: str = ""


@dataclasses.dataclass(frozen=True)
class Config(options.FineTuningConfig):
    task: str = "tokens"
    data: DataConfig = DataConfig()


@dataclasses.dataclass(frozen=True)
class Task(FineTuning):
    """Task on words (see finetuning/task.py)."""

    labels: list[str]
    scheme: str  # scheme of the labels

    input_fields = ("text",)

    @classmethod
    def create(cls, config: Config, workdir: Path) -> "Task":
        data = config.data
        if data.context not in CONTEXTS:
            raise UserError(f"data.context={data.context!r} is not one of {', '.join(CONTEXTS)}")
        scheme = data.scheme or run_folder.read_value(workdir, run_folder.SCHEME, "")
        if scheme not in ("", *SCHEMES):
            where = "data.scheme" if data.scheme else workdir / run_folder.SCHEME
            raise UserError(f"{where}: {scheme!r} is not one of {', '.join(SCHEMES)}; name the scheme of the labels")
        tokenizer = options.tokenizer_for(config, workdir)
        if labels := options.labels_for(workdir, data.train):
            scheme = scheme or scheme_of_labels(labels)
        else:
            path = options.split_path(data, TRAIN)
            sentences = read_sentences(path)
            scheme = scheme or scheme_of(path, sentences)
            labels = labels_in(in_scheme(path, sentences, scheme), scheme)
            if len(labels) < 2:
                raise UserError(f"{path}: every tag is {labels[0]}; there is nothing to classify")
        return cls(config, tokenizer, options.temperature_for(workdir), labels, scheme)

    @property
    def first_score(self) -> str:
        return PLAIN_SCORES[0] if self.scheme == PLAIN else "f1"

    @cached_property
    def objectives(self) -> dict[str, TokenLabels]:
        return {"token": TokenLabels(len(self.labels), self.raw_config.classifier_dropout)}

    def items(self, split: str) -> list[Item]:
        return self._items(self._training if split == TRAIN else self._held_out)

    @cached_property
    def _training(self) -> list[Sentence]:
        return self.sentences(TRAIN)

    @cached_property
    def _held_out(self) -> list[Sentence]:
        return self.sentences(HELD_OUT)

    def sentences(self, split: str) -> list[Sentence]:
        """Reads all sentences of a split, with tags that are labels of the run."""
        path = options.split_path(self.raw_config.data, split)
        sentences = in_scheme(path, read_sentences(path), self.scheme)
        if self.scheme == "IOB1":  # its labels have only the B- tags of the training file
            sentences = [sentence._replace(tags=tuple(map(self._known_tag, sentence.tags))) for sentence in sentences]
        for sentence in sentences:
            if unknown := set(sentence.tags) - set(self.labels):
                problem = f"tag {min(unknown)} is not among those trained on, {listed(self.labels)}"
                place = f"{path}: sentence in line {sentence.line}"
                raise UserError(f"{place}: {problem}; leave it out, or train on it")
        lost = sum(len(sentence.entities) - len(entities(sentence.tags, self.scheme)) for sentence in sentences)
        if self.scheme != PLAIN and lost:
            why = "directly follow one of the same type, and the labels have no tag that separates them"
            logger.warning("%s: %d entities %s", path, lost, why)
        return sentences

    def _known_tag(self, tag: str) -> str:
        """Returns I-TYPE for a B-TYPE that is not among the labels."""
        return tag if tag in self.labels or tag[0] != "B" else f"I{tag[1:]}"

    def _items(self, sentences: Sequence[Sentence]) -> list[Item]:
        class_numbers = {label: number for number, label in enumerate(self.labels)}
        labels = np.array([class_numbers[tag] for sentence in sentences for tag in sentence.tags], np.int32)
        # The space is part of a word's first piece in byte-level BPE, and lost in the others.
        pieces = self.tokenizer.encode([f" {word}" for sentence in sentences for word in sentence.words])
        pieces = [ids if len(ids) else np.array([self.tokenizer.unk_id], np.int32) for ids in pieces]
        data = self.raw_config.data
        longest = data.sequence_length - self.tokenizer.num_special_tokens(1)
        items = []
        for first, after in word_runs(sentences, list(map(len, pieces)), longest, data.context == "document"):
            run = pieces[first:after]
            tokens = joined(self.tokenizer, np.concatenate(run)[:longest])  # a single word may be longer
            starts = 1 + np.cumsum([0, *map(len, run[:-1])])  # after [CLS]
            size = len(tokens["input_ids"])
            tokens |= {"token_labels": np.zeros(size, np.int32), "token_weights": np.zeros(size, np.float32)}
            tokens["token_labels"][starts] = labels[first:after]
            tokens["token_weights"][starts] = 1.0
            items.append(Item(tokens, {}))
        return items

    def score_outputs(self, outputs: list[Output], tunes: bool) -> tuple[Row, dict[str, Any]]:
        """Returns the scores, and the held-out file with the predicted tags as an additional column."""
        logits_NxC = words_only(self.held_out_items, outputs, "token_logits")
        predicted = self._tags(self._held_out, logits_NxC)
        row = self.score(self._held_out, predicted)
        text = "".join(with_predictions(options.split_path(self.raw_config.data, HELD_OUT), predicted))
        files: dict[str, Any] = {f"{run_folder.PREDICTIONS}/validation.conll": text}
        if tunes and self.raw_config.calibrated:
            gold = [self.labels.index(tag) for sentence in self._held_out for tag in sentence.tags]
            row["temperature"] = files[run_folder.TEMPERATURE] = best_temperature(logits_NxC, np.array(gold))
        return row, files

    def score(self, sentences: Sequence[Sentence], predicted: Sequence[Sequence[str]]) -> Row:
        """Returns F1, precision and recall of entities, overall and per type; for plain tags the scores of words.

        `predicted` has the label of each word of the sentences, which are those of the method `sentences`.
        """
        if self.scheme == PLAIN:
            gold_N = np.array([tag for sentence in sentences for tag in sentence.tags])
            predicted_N = np.array([tag for tags in predicted for tag in tags])
            return {name: SCORES[name](gold_N, predicted_N) for name in PLAIN_SCORES}
        return entity_scores(
            [sentence.entities for sentence in sentences],
            [entities(tags, self.scheme) for tags in predicted],
            [len(sentence.words) for sentence in sentences],
        )

    def _tags(self, sentences: Sequence[Sentence], logits_NxC: np.ndarray) -> list[list[str]]:
        """Returns the likeliest tags of each sentence from the logits of all words, made valid in the scheme."""
        tags = [
            [self.labels[number] for number in numbers] for numbers in by_sentence(sentences, logits_NxC.argmax(-1))
        ]
        if self.scheme == PLAIN:
            return tags
        return [tags_of(entities(part, self.scheme), len(part), self.scheme) for part in tags]

    def prepare(self, inputs: list[dict[str, Any]]) -> Prepared:
        """Answers are {'words', 'tags', 'scores', 'entities': [{'type', 'text', 'start', 'end', 'score'}]}.

        A text is split into words by `words_of`, unless the input has a list 'words'. Offsets are in characters; scores are
        the probabilities of the tags, for an entity the lowest among its words; plain tags have no 'entities'. With
        data.context='document', consecutive texts with the same 'document' are read together.
        """
        words = [words_in(values) for values in inputs]
        documents = [values.get("document", -1 - number) for number, values in enumerate(inputs)]
        sentences = [
            Sentence(tuple(word.text for word in part) or ("",), (self.labels[0],) * max(1, len(part)), document)
            for part, document in zip(words, documents, strict=True)
        ]
        items = self._items(sentences)

        def postprocess(outputs: list[Output]) -> list[Answer]:
            logits_NxC = words_only(items, outputs, "token_logits")
            return self._answers(inputs, words, sentences, logits_NxC)

        return Prepared(items, postprocess)

    def _answers(
        self,
        inputs: Sequence[dict[str, Any]],
        words: Sequence[list[Word]],
        sentences: Sequence[Sentence],
        logits_NxC: np.ndarray,
    ) -> list[Answer]:
        tags = self._tags(sentences, logits_NxC)
        confidences = by_sentence(sentences, special.softmax(logits_NxC / self.temperature, axis=-1).max(-1))
        answers = []
        for values, part, part_tags, confidence in zip(inputs, words, tags, confidences, strict=True):
            answer: Answer = {"words": [word.text for word in part], "tags": part_tags[: len(part)]}
            answer["scores"] = confidence[: len(part)].tolist()
            if self.scheme != PLAIN:
                marked = entities(answer["tags"], self.scheme)
                answer["entities"] = [entity_answer(entity, part, values["text"], confidence) for entity in marked]
            answers.append(answer)
        return answers

    @property
    def summary(self) -> str:
        return (
            f"{len(self._training):,} sentences to train on, {len(self._held_out):,} held out; "
            f"labels {listed(self.labels)}, {self.scheme}"
        )

    @property
    def files(self) -> dict[str, Any]:
        return {run_folder.LABELS: self.labels, run_folder.SCHEME: json.dumps(self.scheme)}


def labels_in(sentences: Sequence[Sentence], scheme: str) -> list[str]:
    """Returns all tags of the scheme for the types in sentences or, in IOB1, only the B-TYPE tags that occur."""
    tags = {tag for sentence in sentences for tag in sentence.tags}
    if scheme == PLAIN:
        return options.in_order(tags)
    types = options.in_order({entity.type for sentence in sentences for entity in sentence.entities})
    return [tag for tag in labels_of(types, scheme) if scheme != "IOB1" or tag[0] != "B" or tag in tags]


def word_runs(
    sentences: Sequence[Sentence], sizes: Sequence[int], longest: int, joins_sentences: bool
) -> list[tuple[int, int]]:
    """Returns the words of each example as (first, last + 1), indices into all words of all sentences.

    An example has at most `longest` tokens; `sizes` are those of each word. Longer sentences are split between two words, and
    with `joins_sentences`, sentences of a document that fit together become one example.
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


def by_sentence(sentences: Sequence[Sentence], values_N: np.ndarray) -> list[np.ndarray]:
    """Splits an array with a value for each word of all sentences."""
    return np.split(values_N, np.cumsum([len(sentence.words) for sentence in sentences])[:-1])


def entity_answer(entity: Entity, words: Sequence[Word], text: str, confidence: np.ndarray) -> dict[str, Any]:
    """Returns an entity of a text as JSON, extended to whole grapheme clusters; `confidence` has a value for each word."""
    start, end = whole_characters(text, words[entity.first].start, words[entity.after - 1].end)
    score = float(confidence[entity.first : entity.after].min())
    return {"type": entity.type, "text": text[start:end], "start": start, "end": end, "score": score}

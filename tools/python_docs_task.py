"""Writes the documentation of this Python installation as documents for pretraining and as a labelled task.

    python tools/python_docs_task.py --output=runs/quickstart/data --held_out=0.1

OUTPUT/documents.jsonl has one module per line, without markup. The task is to find the code in a sentence of a docstring whose
backticks have been removed: "If [converters] is callable, the function is applied to all columns". OUTPUT/train.conll and
OUTPUT/validation.conll have one word and its tag (O, B-CODE) per line; the latter has sentences of held-out modules only.

The task has only sentences whose code is written like ordinary words, because a rule could find code with underscores or
parentheses. The labels are the authors' markup and therefore noisy. Sentences in which a word is written like code but not
marked are excluded, because other words are likely to be unmarked, too.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

from absl import flags

from bert_jax.cli.main import run_command
from bert_jax.cli.progress import Progress
from bert_jax.data.datasets.conll import OUTSIDE
from bert_jax.data.inputs import json_line
from bert_jax.data.sources.documents import held_out, read_documents, split_sentences
from bert_jax.data.sources.python_docs import Docstring, python_docstrings, python_topics
from bert_jax.data.words import Word, words_of
from bert_jax.errors import UserError, plain
from bert_jax.files import whole_file
from tools.lib.run_files import read_json_lines

DOCUMENTS, TRAIN, VALIDATION = "documents.jsonl", "train.conll", "validation.conll"
BEGIN, INSIDE = "B-CODE", "I-CODE"
_FEWEST_WORDS, _MOST_WORDS = 6, 40  # of a sentence: shorter ones are labels, longer ones lists
_MOST_CODE = 0.5  # fraction of the words of a sentence; with more it is code rather than prose
_LIKE_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]")
_LIKE_CODE = re.compile(r"[_*`<>|{}\\]|\w\(|\w\.\w*[a-z]\w*\w|[a-z][A-Z]|\w=\w")  # or other markup
_HEADED = re.compile(r"[^:]{,30}:\s")  # `name (str): ...`, where the name is unmarked code


class Row(TypedDict):
    """A line of --docstrings; see `Docstring`."""

    module: str
    name: str
    text: str
    code: NotRequired[tuple[tuple[int, int], ...]]


class Sentence(NamedTuple):
    words: tuple[str, ...]
    tags: tuple[str, ...]
    module: str


def define_flags() -> None:
    flags.DEFINE_string("output", None, f"folder for {DOCUMENTS}, {TRAIN} and {VALIDATION}", required=True)
    flags.DEFINE_float("held_out", 0.1, "fraction of the modules held out", 0.0, 1.0)
    flags.DEFINE_integer("training", 500, "sentences to fine-tune on", lower_bound=1)
    flags.DEFINE_integer("validation", 1000, "held-out sentences", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "seed of the sample of training sentences")
    flags.DEFINE_string("docstrings", "", "a JSONL file of {module, name, text, code} instead of this installation's")


def main() -> None:
    values = flags.FLAGS
    output = Path(values.output)
    output.mkdir(parents=True, exist_ok=True)
    with Progress("reading") as progress:
        docstrings = list(read_docstrings(values.docstrings, progress))
    write_rows(output / DOCUMENTS, documents(docstrings))
    held_out_modules = modules_held_out(output / DOCUMENTS, values.held_out)
    parts = make_task(docstrings, held_out_modules, values.training, values.validation, values.seed)
    for name, sentences in parts.items():
        if not sentences:
            raise UserError(f"--held_out={values.held_out}: no sentences for {name}; choose another fraction")
        write_columns(output / name, sentences)
        spans = sum(tag == BEGIN for sentence in sentences for tag in sentence.tags)
        packages = Counter(sentence.module.partition(".")[0] for sentence in sentences)
        of = ", ".join(f"{package} {count}" for package, count in packages.most_common(5))
        print(plain(f"{output / name}: {len(sentences):,} sentences with {spans:,} pieces of code; most of {of}"))


def read_docstrings(path: str, progress: Progress) -> Iterator[Docstring]:
    """Yields the docstrings of this installation, or of a JSONL file. Raises UserError if it does not exist."""
    source: Iterable[Docstring] = chain(python_docstrings(), python_topics())
    if path:
        if not Path(path).is_file():
            raise UserError(f"--docstrings={path}: no such file; use another, or omit the flag")
        source = (Docstring(**row) for row in read_json_lines(Path(path), Row))
    for docstring in source:
        progress.count(len(docstring.text.encode()))
        yield docstring


def documents(docstrings: Iterable[Docstring]) -> Iterator[dict[str, str]]:
    """Yields one document for each module, as with `--source=python-docs`."""
    for module, group in groupby(docstrings, key=lambda docstring: docstring.module):
        yield {"module": module, "text": "\n".join(docstring.text for docstring in group)}


def modules_held_out(path: Path, fraction: float) -> set[str]:
    """Returns the modules that are held out in a corpus prepared from the documents file."""
    modules = (row["module"] for row in read_json_lines(path, dict[str, str]))
    ids = (document.id for document in read_documents(f"jsonl:{path}"))
    return {module for module, identity in zip(modules, ids, strict=True) if held_out(identity, fraction)}


def make_task(
    docstrings: Iterable[Docstring], held_out_modules: set[str], num_training: int, num_validation: int, seed: int = 0
) -> dict[str, list[Sentence]]:
    """Samples at most so many sentences for training and, from held-out modules, for validation, without duplicates.

    Only those for training depend on the seed; a smaller sample is the beginning of a larger one.
    """
    first: dict[tuple[str, ...], Sentence] = {}
    for docstring in docstrings:
        for sentence in marked_sentences(docstring):
            first.setdefault(sentence.words, sentence)
    parts = {}
    for name, is_held_out, count in ((TRAIN, False, num_training), (VALIDATION, True, num_validation)):
        part = [sentence for sentence in first.values() if (sentence.module in held_out_modules) == is_held_out]
        random.Random(0 if is_held_out else seed).shuffle(part)
        parts[name] = part[:count]
    return parts


def marked_sentences(docstring: Docstring) -> Iterator[Sentence]:
    """Yields the sentences of a docstring that contain code and are suitable (see `is_suitable`)."""
    if not docstring.code:
        return
    end = 0
    for text in (sentence for line in docstring.text.split("\n") for sentence in split_sentences(line)):
        start = docstring.text.index(text, end)
        end = start + len(text)
        code = [(first - start, after - start) for first, after in docstring.code if start <= first and after <= end]
        words = words_of(text)
        tags = tags_of(words, code)
        if tags and not _HEADED.match(text) and is_suitable(words, tags):
            yield Sentence(tuple(word.text for word in words), tuple(tags), docstring.module)


def tags_of(words: list[Word], code: list[tuple[int, int]]) -> list[str]:
    """Returns the tag of each word; an empty list if code begins or ends within a word."""
    starts = {word.start: number for number, word in enumerate(words)}
    ends = {word.end: number for number, word in enumerate(words, 1)}
    tags = [OUTSIDE] * len(words)
    for first, after in code:
        if first not in starts or after not in ends:
            return []
        tags[starts[first] : ends[after]] = [BEGIN, *[INSIDE] * (ends[after] - starts[first] - 1)]
    return tags


def is_suitable(words: list[Word], tags: list[str]) -> bool:
    """Checks whether a sentence has code and prose, with code written like words and no prose written like code."""
    inside = [word.text for word, tag in zip(words, tags, strict=True) if tag == BEGIN]
    outside = [word.text for word, tag in zip(words, tags, strict=True) if tag == OUTSIDE]
    return (
        _FEWEST_WORDS <= len(words) <= _MOST_WORDS
        and 0 < len(inside) <= _MOST_CODE * len(words)
        and len(inside) + len(outside) == len(words)  # each piece of code is one word
        and all(map(_LIKE_WORD.fullmatch, inside))
        and not any(map(_LIKE_CODE.search, outside))
    )


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Writes JSON lines atomically."""
    with whole_file(path) as file:
        file.writelines(map(json_line, rows))


def write_columns(path: Path, sentences: Iterable[Sentence]) -> None:
    """Writes one word and its tag per line, and an empty line after each sentence, atomically."""
    with whole_file(path) as file:
        for sentence in sentences:
            pairs = zip(sentence.words, sentence.tags, strict=True)
            file.writelines([*(f"{word}\t{tag}\n" for word, tag in pairs), "\n"])


if __name__ == "__main__":
    define_flags()
    run_command(main)

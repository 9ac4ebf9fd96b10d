"""Writes the documentation of this Python installation as files: documents to pretrain on, and a labelled task.

    python tools/python_docs_task.py --output=runs/quickstart/data --held_out=0.1

OUTPUT/documents.jsonl holds a module a line. The task is to tell from the first sentence of a docstring which package it
documents; sentences of the modules that the corpus holds out are its validation file. Words with the name of a package
in them are replaced, for they would give the answer away.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from absl import flags

from bert_jax import cli
from bert_jax.data.python_docs import Docstring, python_docstrings, python_topics
from bert_jax.data.sources import held_out, read_documents, split_sentences
from bert_jax.errors import UserError
from bert_jax.files import whole_file
from bert_jax.progress import Progress

DOCUMENTS, TRAIN, VALIDATION = "documents.jsonl", "train.jsonl", "validation.jsonl"
STAND_IN = "this package"  # takes the place of words that hold a package's name
OTHER_NAMES = {"sklearn": "scikit-learn", "tensorflow_datasets": "tfds", "PIL": "pillow"}
_LEAST_LETTERS = 20  # of a sentence; shorter ones ("The name.") say nothing


class Sentence(NamedTuple):
    """An example of the task."""

    text: str
    label: str  # top-level package
    module: str
    is_held_out: bool


def define_flags() -> None:
    """Not at import: other programs have flags of the same names."""
    flags.DEFINE_string("output", None, "folder for documents.jsonl, train.jsonl and validation.jsonl", required=True)
    flags.DEFINE_float("held_out", 0.1, "share of the modules held out", 0.0, 1.0)
    flags.DEFINE_integer("num_labels", 12, "packages to tell apart: the largest", lower_bound=2)
    flags.DEFINE_integer("most_per_label", 600, "training sentences of a package", lower_bound=1)
    flags.DEFINE_string("docstrings", "", "a JSONL file of {module, name, text} instead of this installation's")


def main() -> None:
    output = Path(flags.FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    with Progress("reading") as progress:
        docstrings = list(read_docstrings(flags.FLAGS.docstrings, progress))
    write_rows(output / DOCUMENTS, documents(docstrings))
    held_out_modules = modules_held_out(output / DOCUMENTS, flags.FLAGS.held_out)
    task = make_task(docstrings, held_out_modules, flags.FLAGS.num_labels, flags.FLAGS.most_per_label)
    for name, wanted in ((TRAIN, False), (VALIDATION, True)):
        rows = [sentence._asdict() for sentence in task if sentence.is_held_out == wanted]
        write_rows(output / name, rows)
        counts = Counter(row["label"] for row in rows)
        print(f"{output / name}: {len(rows):,} sentences; " + ", ".join(f"{n} {c}" for n, c in counts.most_common()))
    if {sentence.label for sentence in task if sentence.is_held_out} != {sentence.label for sentence in task}:
        raise UserError(
            f"--held_out={flags.FLAGS.held_out}: some packages have no sentence held out; choose a larger share"
        )


def read_docstrings(path: str, progress: Progress) -> Iterator[Docstring]:
    """The docstrings of this installation, topics of `help()` last, or those of a JSONL file."""
    if path:
        source: Iterable[Docstring] = (
            Docstring(**json.loads(line)) for line in Path(path).read_text(encoding="utf-8").splitlines()
        )
    else:
        source = (docstring for texts in (python_docstrings(), python_topics()) for docstring in texts)
    for docstring in source:
        progress.count(len(docstring.text.encode()))
        yield docstring


def documents(docstrings: Iterable[Docstring]) -> Iterator[dict[str, str]]:
    """One document for each module, as `--source=python-docs` makes them."""
    for module, group in groupby(docstrings, key=lambda docstring: docstring.module):
        yield {"module": module, "text": "\n".join(docstring.text for docstring in group)}


def modules_held_out(path: Path, fraction: float) -> set[str]:
    """The modules that a corpus prepared from the documents file holds out: the same ids, the same hash."""
    modules = (json.loads(line)["module"] for line in path.read_text(encoding="utf-8").splitlines())
    ids = (document.id for document in read_documents(f"jsonl:{path}"))
    return {module for module, identity in zip(modules, ids, strict=True) if held_out(identity, fraction)}


def make_task(
    docstrings: Iterable[Docstring], held_out_modules: set[str], num_labels: int, most_per_label: int
) -> list[Sentence]:
    """The labelled sentences of the packages that have the most of them; no sentence occurs twice.

    Args:
      docstrings: of all packages.
      held_out_modules: sentences of which are marked so.
      num_labels: packages that are kept.
      most_per_label: training sentences kept of each, drawn at random (always the same); half as many held out.
    """
    first: dict[str, Docstring] = {}
    for docstring in docstrings:
        sentence = split_sentences(docstring.text.partition("\n")[0])[0]
        if len(sentence) >= _LEAST_LETTERS:
            first.setdefault(sentence, docstring)
    sizes = Counter(docstring.module.partition(".")[0] for docstring in first.values())
    sizes.pop("pydoc_data", None)  # chapters of the language reference, no docstrings
    labels = sorted(name for name, _ in sizes.most_common(num_labels))
    telling = telling_words(labels)
    by_part: dict[tuple[str, bool], list[Sentence]] = {}
    for sentence, docstring in first.items():
        label, is_held_out = docstring.module.partition(".")[0], docstring.module in held_out_modules
        if label in labels:
            text = telling.sub(STAND_IN, sentence)
            part = by_part.setdefault((label, is_held_out), [])
            part.append(Sentence(text, label, docstring.module, is_held_out))
    task = []
    for (_, is_held_out), part in sorted(by_part.items()):
        most = most_per_label // 2 if is_held_out else most_per_label
        task += random.Random(0).sample(part, min(len(part), most))
    return task


def telling_words(labels: list[str]) -> re.Pattern[str]:
    """Matches the words that hold the name of a package, in any case: 'numpy.ndarray', 'JAX-based'."""
    names = [*labels, *(name for label, name in OTHER_NAMES.items() if label in labels)]
    alternatives = "|".join(sorted({re.escape(name.lower()) for name in names}, key=len, reverse=True))
    return re.compile(rf"[\w.\-/]*(?:{alternatives})[\w\-/]*(?:\.\w[\w\-/]*)*", re.IGNORECASE)


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """JSON lines, whole or not at all."""
    with whole_file(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    define_flags()
    cli.run(main)

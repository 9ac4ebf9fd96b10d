"""Reads documents from a source, assigns them to the held-out split, and splits paragraphs into sentences."""

import hashlib
import re
from collections.abc import Callable, Iterator
from itertools import chain, groupby
from typing import Any

# None of these modules imports the library of its format (pyarrow, tensorflow-datasets, mwparserfromhell) before a file of it
# is read: they take up to seconds to import, in every worker process, and one of them is optional.
from bert_jax.data.sources.arrow_folder import read_arrow
from bert_jax.data.sources.base import Document, Progress
from bert_jax.data.sources.parquet import read_parquet
from bert_jax.data.sources.python_docs import python_docstrings, python_topics
from bert_jax.data.sources.text_files import read_jsonl, read_text
from bert_jax.data.sources.tfds_dataset import read_tfds
from bert_jax.data.sources.wikipedia_xml import read_wikipedia
from bert_jax.errors import UserError


def read_documents(
    spec: str, document: str = "blank-line", progress: Progress = lambda share: None, workers: int = 1
) -> Iterator[Document]:
    """Yields the documents of a source, always in the same order.

    Args:
      spec: a source, see `FORMS`; FIELD defaults to `text`, SPLIT to `train`. Files are read in the order
        of their names; those of text, jsonl and wikipedia-xml may be compressed (.gz, .bz2, .xz, .zst).
      document: what ends a document of a text source: `blank-line`, or `file` for the end of the file only.
      progress: called repeatedly, except by sources of unknown size (`python-docs`).
      workers: number of processes that convert the markup of wikipedia-xml; the others read in this process.

    Raises:
      UserError: an unknown kind, or a file that is missing, damaged, truncated or of another format, or lacks the field.
        Errors in a file are raised when it is reached.
    """
    name, _, argument = spec.partition(":")
    if document not in ("blank-line", "file"):
        raise UserError(f"document {document!r}: unknown boundary; use 'blank-line' or 'file'")
    if name not in KINDS:
        raise UserError(f"source {spec!r}: unknown kind {name!r}; use {FORMS}")
    options: dict[str, dict[str, Any]] = {
        "text": {"by_file": document == "file"},
        "wikipedia-xml": {"workers": workers},
    }
    return KINDS[name](argument, progress, **options.get(name, {}))


def held_out(document_id: str, fraction: float) -> bool:
    """Checks whether a document belongs to the held-out `fraction` (0 to 1); this depends on its id only."""
    digest = hashlib.blake2b(document_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2.0**64


def _read_python_docs(argument: str, progress: Progress) -> Iterator[Document]:
    """Yields the English documentation of this Python installation, one document per module or topic."""
    if argument:
        raise UserError(f"source 'python-docs:{argument}': takes no argument; use 'python-docs'")
    docstrings = chain(python_docstrings(), python_topics())
    for module, group in groupby(docstrings, key=lambda docstring: docstring.module):
        yield Document(module, "\n".join(docstring.text for docstring in group))


# By what stands before the first colon; they take what stands after it, `progress`, and options.
KINDS: dict[str, Callable[..., Iterator[Document]]] = {
    "text": read_text,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "tfds": read_tfds,
    "wikipedia-xml": read_wikipedia,
    "python-docs": _read_python_docs,
}
# Their forms, for messages and the help of flags.
FORMS = (
    "one of text:GLOB, jsonl:GLOB[:FIELD], parquet:GLOB[:FIELD], arrow:FOLDER[:FIELD], "
    "tfds:NAME[/CONFIG][:SPLIT][:FIELD], wikipedia-xml:GLOB, python-docs"
)


# ---------------------------------------------------------------------------------------------------------------------
# Sentences
# ---------------------------------------------------------------------------------------------------------------------

_SENTENCE_END = re.compile(r"""[.!?…؟][.!?…؟"'”’»)\]]*\s+|[。！？][”’」』）]*\s*""")  # noqa: RUF001
_OPENING = "(['\"“‘"  # noqa: RUF001
# fmt: off
_ABBREVIATIONS = frozenset([
    "al", "approx", "bros", "capt", "cf", "co", "col", "corp", "dept", "dr", "e.g", "ed", "eds", "esp", "etc", "gen",
    "gov", "hon", "i.e", "inc", "jr", "lt", "ltd", "mr", "mrs", "ms", "mt", "prof", "ref", "rev", "sen", "sgt", "sr",
    "st", "u.k", "u.s", "vs",
])
# fmt: on
_BEFORE_NUMBERS = frozenset(["art", "ch", "eq", "eqs", "fig", "figs", "no", "nos", "p", "pp", "sec", "vol", "vols"])


def split_sentences(paragraph: str) -> list[str]:
    """Splits a paragraph into sentences after ., ? or !, closing quotes and white space.

    Chinese and Japanese marks need no white space. Limits: abbreviations (common English ones are listed) and initials
    never end a sentence; no sentence begins with a lower-case letter; scripts without such marks (Thai) are not split.
    """
    sentences, start = [], 0
    for end in _SENTENCE_END.finditer(paragraph):
        following = paragraph[end.end() : end.end() + 1]
        if following.islower():
            continue
        if end.group()[0] == ".":
            word = paragraph[paragraph.rfind(" ", start, end.start()) + 1 : end.start()].lstrip(_OPENING)
            initial = len(word) == 1 and word.isalpha()
            if initial or word.lower() in (_BEFORE_NUMBERS if following.isdigit() else _ABBREVIATIONS):
                continue
        sentences.append(paragraph[start : end.end()].strip())
        start = end.end()
    sentences.append(paragraph[start:].strip())
    return [sentence for sentence in sentences if sentence]

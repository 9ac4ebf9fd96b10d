"""Reads documents from a source, assigns them to the held-out split, and splits paragraphs into sentences."""

import hashlib
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

# None of these modules imports the library of its format (pyarrow, tensorflow-datasets, mwparserfromhell) before a file of it
# is read: they take up to seconds to import, in every worker process, and one of them is optional.
from bert_jax.data.sources.arrow_folder import find_arrow_files, read_arrow
from bert_jax.data.sources.base import BadRecords, Document, Progress, path_and_field
from bert_jax.data.sources.files import SourceFile, find_files, source_files
from bert_jax.data.sources.parquet import read_parquet
from bert_jax.data.sources.python_docs import python_docstrings, python_topics
from bert_jax.data.sources.text_files import read_jsonl, read_text
from bert_jax.data.sources.tfds_dataset import absolute_argument, find_tfds_files, read_tfds
from bert_jax.data.sources.wikipedia_xml import read_wikipedia
from bert_jax.errors import UserError


@dataclass(frozen=True)
class Source:
    """A source of documents: its files, and the documents of any of them.

    Raises:
      UserError: an unknown kind of source.
    """

    spec: str  # see `FORMS`; FIELD defaults to `text`, SPLIT to `train`
    document: str = "blank-line"  # what ends a document of a text source: also `file`, for the end of the file only

    def __post_init__(self) -> None:
        if self.document not in ("blank-line", "file"):
            raise UserError(f"document {self.document!r}: unknown boundary; use 'blank-line' or 'file'")
        if self._kind not in KINDS:
            raise UserError(f"source {self.spec!r}: unknown kind {self._kind!r}; use {FORMS}")

    @property
    def description(self) -> str:
        """What is recorded of a source: it decides which documents there are."""
        return self.spec if self.document == "blank-line" else f"{self.spec} by {self.document}"

    def files(self, progress: Progress = lambda share: None) -> Iterator[SourceFile]:
        """Yields the files in the order of their documents; `progress` is called as they are read, see `read_documents`."""
        return KINDS[self._kind].files(self._argument, progress)

    def documents(self, files: Iterable[SourceFile], bad: BadRecords, workers: int = 1) -> Iterator[Document]:
        """Yields the documents of files; arguments and errors as for `read_documents`."""
        options: dict[str, dict[str, Any]] = {
            "text": {"by_file": self.document == "file"},
            "wikipedia-xml": {"workers": workers},
        }
        return KINDS[self._kind].documents(files, self._argument, bad, **options.get(self._kind, {}))

    def absolute(self) -> "Source":
        """Returns the source for processes with other working directories, which are given files by their absolute paths.

        Only a `tfds` source reads more than these files: its folder becomes absolute.
        """
        return replace(self, spec=f"tfds:{absolute_argument(self._argument)}") if self._kind == "tfds" else self

    @property
    def _kind(self) -> str:
        return self.spec.partition(":")[0]

    @property
    def _argument(self) -> str:
        return self.spec.partition(":")[2]


def read_documents(
    spec: str,
    document: str = "blank-line",
    progress: Progress = lambda share: None,
    workers: int = 1,
    bad: BadRecords | None = None,
) -> Iterator[Document]:
    """Yields the documents of a source, always in the same order.

    Args:
      spec: a source. Files are read in the order of their names; those of text, jsonl and wikipedia-xml may be compressed
        (.gz, .bz2, .xz, .zst).
      document: see `Source`.
      progress: called repeatedly, except by sources of unknown size (`python-docs`).
      workers: number of processes that convert the markup of wikipedia-xml; the others read in this process.
      bad: counts the records that cannot be read; without it, the first one is an error.

    Raises:
      UserError: an unknown kind, or a file that is missing, damaged, truncated or of another format, or lacks the field.
        Errors in a file are raised when it is reached.
    """
    source = Source(spec, document)
    return source.documents(source.files(progress), bad or BadRecords(), workers)


def held_out(document_id: str, fraction: float) -> bool:
    """Checks whether a document belongs to the held-out `fraction` (0 to 1); this depends on its id only."""
    digest = hashlib.blake2b(document_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2.0**64


def _find_field_files(argument: str, progress: Progress) -> Iterator[SourceFile]:
    """Yields the files of GLOB[:FIELD]."""
    return find_files(path_and_field(argument)[0], progress)


def _find_python_docs(argument: str, progress: Progress) -> Iterator[SourceFile]:
    """Yields the standard library, in the place of all that is read: packages share one order of documents."""
    if argument:
        raise UserError(f"source 'python-docs:{argument}': takes no argument; use 'python-docs'")
    folder = Path(sysconfig.get_path("stdlib"))
    yield from source_files([(folder, folder.name)], lambda share: None)


def _read_python_docs(files: Iterable[SourceFile], argument: str, bad: BadRecords) -> Iterator[Document]:
    """Yields the English documentation of this Python installation, one document per module or topic."""
    for _ in files:
        docstrings = chain(python_docstrings(), python_topics())
        for module, group in groupby(docstrings, key=lambda docstring: docstring.module):
            yield Document(module, "\n".join(docstring.text for docstring in group))


class Kind(NamedTuple):
    """The two halves of reading a kind of source."""

    files: Callable[[str, Progress], Iterator[SourceFile]]  # takes what stands after the first colon of a source
    documents: Callable[..., Iterator[Document]]  # takes files, the same argument, bad records, and options


# By what stands before the first colon.
KINDS: dict[str, Kind] = {
    "text": Kind(find_files, read_text),
    "jsonl": Kind(_find_field_files, read_jsonl),
    "parquet": Kind(_find_field_files, read_parquet),
    "arrow": Kind(find_arrow_files, read_arrow),
    "tfds": Kind(find_tfds_files, read_tfds),
    "wikipedia-xml": Kind(find_files, read_wikipedia),
    "python-docs": Kind(_find_python_docs, _read_python_docs),
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

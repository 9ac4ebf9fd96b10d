"""What every source of documents has: the documents, their progress, its argument."""

from collections.abc import Callable
from typing import NamedTuple

DOCUMENT_CHARACTERS = 1 << 24  # longer documents are split, so that a shard fits into memory


# What stands before the first colon of a source; `documents.KINDS` has their readers.
SOURCE_KINDS = ("text", "jsonl", "parquet", "arrow", "tfds", "wikipedia-xml", "python-docs")


class Document(NamedTuple):
    """One text and the id that decides whether it is held out; paragraphs are lines of `text`."""

    id: str
    text: str


Progress = Callable[[float], None]  # called with the fraction of a source that has been read, 0 to 1


def path_and_field(argument: str) -> tuple[str, str]:
    """Splits PATH[:FIELD]; the field is `text` by default."""
    path, _, field = argument.rpartition(":")
    is_part_of_path = not path or not field or "/" in field
    return (argument, "text") if is_part_of_path else (path, field)

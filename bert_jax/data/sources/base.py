"""What every source of documents has: the documents, their progress, its argument, records that cannot be read."""

import logging
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from bert_jax.errors import UserError

logger = logging.getLogger(__name__)

DOCUMENT_CHARACTERS = 1 << 24  # longer documents are split, so that a shard fits into memory


# What stands before the first colon of a source; `documents.KINDS` has their readers.
SOURCE_KINDS = ("text", "jsonl", "parquet", "arrow", "tfds", "wikipedia-xml", "python-docs")


class Document(NamedTuple):
    """One text and the id that decides whether it is held out; paragraphs are lines of `text`."""

    id: str
    text: str


# Kinds of records that cannot be read.
NOT_JSON, NOT_TEXT, NO_FIELD, DAMAGED = "invalid_json", "not_text", "no_field", "damaged"
_LOGGED = 10  # of the records that are skipped


class BadRecords:
    """Counts the records of a source that cannot be read; more than `most` are an error."""

    def __init__(self, most: int = 0):
        self.most = most
        self.counts = Counter[str]()  # by kind
        self.messages = list[tuple[str, str]]()  # (kind, what is wrong and where), in the order of the source

    def skip(self, kind: str, message: str) -> None:
        """Counts a record. Raises UserError with the message if there have been `most` before."""
        if self.counts.total() >= self.most:
            after = f" ({self.most:,} skipped before, as --skip_bad_records allows)" if self.most else ""
            raise UserError(message + after)
        self.counts[kind] += 1
        self.messages.append((kind, message))
        if len(self.messages) <= _LOGGED:
            logger.warning("skipped: %s%s", message, "; others are only counted" * (len(self.messages) == _LOGGED))

    def summary(self) -> str:
        """Returns the numbers by kind, in words."""
        return ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.counts.items()))


Progress = Callable[[float], None]  # called with the fraction of a source that has been read, 0 to 1


def path_and_field(argument: str) -> tuple[str, str]:
    """Splits PATH[:FIELD]; the field is `text` by default."""
    path, _, field = argument.rpartition(":")
    is_part_of_path = not path or not field or "/" in field
    return (argument, "text") if is_part_of_path else (path, field)

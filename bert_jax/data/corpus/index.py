"""corpus.json, the index of a prepared corpus: its contents and their validation."""

from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec

from bert_jax.data.tokenizer.engines import ROLES
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import as_form, read_json

BLOCK_TOKENS = 2048
FORMAT_VERSION = 1
INDEX_FILE = "corpus.json"  # written last, so it marks a finished corpus
TOKENIZER_FOLDER = "tokenizer"
REMEDY = "copy the corpus again, or remove it and prepare it again"

# Lengths of rows whose number is counted when a corpus is prepared: to count those of thousands of shards takes minutes.
PACKED_LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]
_Positive = Annotated[int, msgspec.Meta(ge=1, lt=1 << 48)]
_MOST_TOKENS = 1 << 24  # ten times the largest vocabularies
_TokenId = Annotated[int, msgspec.Meta(ge=0, lt=_MOST_TOKENS)]


class Shard(TypedDict):
    """One file of a split."""

    file: Annotated[str, msgspec.Meta(pattern=r"^\w[\w.-]*\Z", max_length=200)]  # a name without a path
    bytes: _Positive
    tokens: _Positive  # separators included
    number: Count
    documents: NotRequired[_Positive]  # whose lengths are in lengths-SPLIT.npy; older corpora have neither
    # By length, for the lengths of PACKED_LENGTHS: how many rows its documents fill without overlap (see best_fit.py).
    packed_rows: NotRequired[Annotated[dict[str, _Positive], msgspec.Meta(max_length=16)]]


class Split(TypedDict):
    documents: _Positive
    shards: Annotated[list[Shard], msgspec.Meta(min_length=1)]


class TextCounts(TypedDict):
    """What the documents of a split, or of a shard, amount to; documents without tokens do not count."""

    text_bytes: Count  # UTF-8, after cleaning
    words: Count  # separated by ASCII white space
    unknown_tokens: Count
    longest_document: Count  # in tokens, without its separator
    lengths: Annotated[list[tuple[Count, Count]], msgspec.Meta(max_length=64)]  # (shortest length of a bin, documents)


class Statistics(TypedDict):
    """What preparation counted."""

    documents_read: Count
    dropped: Annotated[dict[str, Count], msgspec.Meta(max_length=16)]  # by reason, see cleaning.py
    bad_records: NotRequired[
        Annotated[dict[str, Count], msgspec.Meta(max_length=16)]
    ]  # not read, by kind, see sources/base.py
    splits: dict[str, TextCounts]
    fingerprint: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]  # of the texts, tokenizer and settings


class Index(TypedDict):
    format: int
    source: str
    tokenizer: str  # fingerprint
    held_out_fraction: float
    shard_megabytes: float
    block_tokens: Literal[2048]  # BLOCK_TOKENS
    vocab_size: Annotated[int, msgspec.Meta(ge=1, le=_MOST_TOKENS)]
    special_ids: dict[str, _TokenId]  # of all ROLES
    skipped_documents: Count
    splits: dict[str, Split]  # train, validation
    # Corpora prepared by older versions lack these.
    cleaning: NotRequired[dict[str, Any]]  # Cleaning.settings
    statistics: NotRequired[Statistics]


def read_index(directory: Path) -> Index:
    """Reads corpus.json. Raises UserError if the corpus is unfinished or of another format, or as `as_index`."""
    if not directory.is_dir():
        options = "data.corpus, data.mixture, data.eval_corpora or phases"
        remedy = f"make it with tools/prepare_corpus.py, or, if it was moved, set its path in {options}"
        raise UserError(f"{directory}: no such corpus folder; {remedy}")
    path = directory / INDEX_FILE
    if not path.exists():
        raise UserError(f"{directory}: not a finished corpus ({INDEX_FILE} is missing); run tools/prepare_corpus.py")
    content = read_json(path, remedy=REMEDY)
    version = content.get("format", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        supported = f"is not supported, only {FORMAT_VERSION}"
        raise UserError(f"{directory}: corpus format {version} {supported}; prepare it again")
    return as_index(content, path, REMEDY)


def as_index(content: dict[str, Any], path: Path, remedy: str) -> Index:
    """Returns the index that was read from a file. Raises UserError if it is damaged or inconsistent."""
    index: Index = as_form(content, Index, path, remedy)
    ids = index["special_ids"]
    if set(ids) != set(ROLES) or max(ids.values()) >= index["vocab_size"]:
        raise UserError(f"{path}: special_ids are not those of {', '.join(ROLES)}, or outside the vocabulary; {remedy}")
    names = [shard["file"] for split in index["splits"].values() for shard in split["shards"]]
    if len(set(names)) < len(names) or not names:
        raise UserError(f"{path}: no shards, or duplicate ones; {remedy}")
    return index


def role_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Returns the ids of the special tokens by role, as stored in corpus.json."""
    return {role: getattr(tokenizer, f"{role}_id") for role in ROLES}

"""Describes a prepared corpus for people: the README.md in its folder, written from corpus.json."""

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from bert_jax.data.corpus.index import INDEX_FILE, Index, Split
from bert_jax.data.corpus.statistics import add_counts, median_length
from bert_jax.errors import plain

CARD_FILE = "README.md"
_BAR = 40  # characters of the longest bar
# What is said of documents that are dropped, by reason (cleaning.py).
REASON_TEXTS = {
    "short": "shorter than `min_characters`",
    "regex": "matched `drop_regex`",
    "language": "in another language",
    "duplicate": "duplicates of an earlier one",
    "near_duplicate": "near duplicates of an earlier one",
    "empty": "without tokens",
}


def corpus_card(index: Index) -> str:
    """Returns the README.md of a corpus that has statistics: the same for the same corpus, wherever it is."""
    sections = [_head(index), _sizes(index), _cleaning(index), _lengths(index), _tokenizer(index), _use()]
    return "\n\n".join(sections) + "\n"


def documents_by_fate(index: Index) -> dict[str, int]:
    """Returns the number of documents that were read, of those dropped by reason, and of those kept, in this order."""
    statistics = index["statistics"]
    kept = sum(split["documents"] for split in index["splits"].values())
    empty = {"empty": index["skipped_documents"]} if index["skipped_documents"] else {}
    return {"read": statistics["documents_read"], **statistics["dropped"], **empty, "kept": kept}


def split_tokens(split: Split) -> int:
    """Returns the tokens of a split without separators, of which each document has one."""
    return sum(shard["tokens"] for shard in split["shards"]) - split["documents"]


def _head(index: Index) -> str:
    tokens = sum(shard["tokens"] for split in index["splits"].values() for shard in split["shards"])
    documents = documents_by_fate(index)["kept"]
    return (
        f"# Corpus for pretraining: {tokens:,} tokens\n\n"
        f"{documents:,} documents of `{_code(index['source'])}`, tokenized for [bert_jax](#use) and stored as blocks of "
        f"{index['block_tokens']:,} tokens.\n"
        f"Fingerprint of the corpus (texts, tokenizer and settings): `{index['statistics']['fingerprint']}`."
    )


def _sizes(index: Index) -> str:
    counts, splits = index["statistics"]["splits"], index["splits"]
    columns = [(split, counts[name]) for name, split in splits.items() if name in counts]
    rows = {
        "documents": [f"{split['documents']:,}" for split, _ in columns],
        "tokens, with a separator after each document": [
            f"{split_tokens(split) + split['documents']:,}" for split, _ in columns
        ],
        "text, MB": [f"{text['text_bytes'] / 1e6:,.2f}" for _, text in columns],
        "words": [f"{text['words']:,}" for _, text in columns],
        "tokens per word": [_ratio(split_tokens(split), text["words"]) for split, text in columns],
        "bytes per token": [_ratio(text["text_bytes"], split_tokens(split)) for split, text in columns],
        "unknown tokens": [_share(text["unknown_tokens"], split_tokens(split)) for split, text in columns],
        "tokens per document, mean": [f"{split_tokens(split) / split['documents']:,.0f}" for split, _ in columns],
        "tokens per document, median (about)": [f"{median_length(text['lengths']):,.0f}" for _, text in columns],
        "tokens of the longest document": [f"{text['longest_document']:,}" for _, text in columns],
        "shards": [f"{len(split['shards']):,}" for split, _ in columns],
    }
    table = _table(["", *splits], ([name, *values] for name, values in rows.items()))
    held_out = (
        f"{100 * index['held_out_fraction']:.3g}% of the documents are held out, as `validation`. "
        "The id of a document decides, so it stays on its side when the corpus grows."
    )
    return f"## Size\n\n{table}\n\n{held_out}"


def _cleaning(index: Index) -> str:
    fates = documents_by_fate(index)
    rows = [[REASON_TEXTS.get(fate, fate), f"{count:,}", _share(count, fates["read"])] for fate, count in fates.items()]
    options = index.get("cleaning", {})
    used = "\n".join(f"- `{_code(name)}`: `{_code(_option(value))}`" for name, value in options.items())
    return (
        f"## Cleaning\n\n{used or 'No option of cleaning was set.'}\n\n{_table(['documents', 'number', 'share'], rows)}"
    )


def _lengths(index: Index) -> str:
    """Draws a histogram of both splits together."""
    bins: Sequence[tuple[int, int]] = add_counts(index["statistics"]["splits"].values())["lengths"]
    most, total = max(count for _, count in bins), sum(count for _, count in bins)
    lines = [
        f"{start:>10,}  {'█' * round(_BAR * count / most) or '▏':<{_BAR}}  {count:>12,}  {_share(count, total):>7}"
        for start, count in bins
    ]
    histogram = "\n".join(line.rstrip() for line in lines)
    return (
        "## Lengths of documents\n\n"
        "Documents of at least so many tokens, and fewer than the next bin begins with; empty bins are left out.\n\n"
        f"```text\n{histogram}\n```"
    )


def _tokenizer(index: Index) -> str:
    roles = ", ".join(f"{role} {index['special_ids'][role]}" for role in sorted(index["special_ids"]))
    return (
        "## Tokenizer\n\n"
        f"In `tokenizer/`: {index['vocab_size']:,} tokens, fingerprint `{_code(index['tokenizer'])}`. Ids of special tokens: "
        f"{roles}. A model that is trained on the corpus has the same tokenizer."
    )


def _use() -> str:
    return (
        "## Use\n\n"
        "```\n"
        "python -m bert_jax.pretrain --config=configs/bert_base.py --config.data.corpus=FOLDER --workdir=runs/mine\n"
        "python tools/corpus_stats.py --corpus=FOLDER        # a page with plots\n"
        "```\n\n"
        "`bert_jax.data.corpus.format.Corpus.open(FOLDER)` and `tensorflow_datasets.builder_from_directory(FOLDER)` read it, "
        f"too. This page was written by `tools/prepare_corpus.py` from `{INDEX_FILE}`, which has the same figures."
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _option(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return " ".join(shlex.quote(str(item)) for item in value) if isinstance(value, list) else str(value)


def _code(text: str) -> str:
    """Returns text that stays literal between backticks."""
    return plain(text).replace("`", "'")


def _ratio(value: int, of: int) -> str:
    return f"{value / of:.2f}" if of else "-"


def _share(value: int, of: int) -> str:
    return f"{value / of:.2%}" if of else "-"

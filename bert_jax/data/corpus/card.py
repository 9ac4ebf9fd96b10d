"""Describes a prepared corpus for people: the README.md in its folder, written from corpus.json."""

from collections.abc import Callable
from typing import Any

from bert_jax.data.corpus.index import INDEX_FILE, Index, Split, TextCounts
from bert_jax.data.corpus.statistics import add_counts, median_length
from bert_jax.markdown import escaped, table

CARD_FILE = "README.md"
# What is said of records that could not be read, by kind (sources/base.py).
BAD_RECORD_TEXTS = {
    "invalid_json": "invalid JSON",
    "not_text": "not UTF-8 text",
    "no_field": "without the field of the text",
    "damaged": "damaged",
}
_BAR = 40  # characters of the longest bar
# What is said of documents that are dropped, by reason (cleaning.py).
REASON_TEXTS = {
    "short": "shorter than min_characters",
    "regex": "matched drop_regex",
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


def _head(index: Index) -> str:
    tokens = sum(shard["tokens"] for split in index["splits"].values() for shard in split["shards"])
    documents = documents_by_fate(index)["kept"]
    return (
        f"# Corpus for pretraining: {tokens:,} tokens\n\n"
        f"{documents:,} documents of {escaped(index['source'])}, tokenized and stored as blocks of "
        f"{index['block_tokens']:,} tokens.\n"
        f"Fingerprint of the corpus (its texts, tokenizer and settings): `{index['statistics']['fingerprint']}`."
    )


def _sizes(index: Index) -> str:
    splits = {name: (split, index["statistics"]["splits"][name]) for name, split in index["splits"].items()}
    figures: dict[str, Callable[[Split, TextCounts], str]] = {
        "documents": lambda split, text: f"{split['documents']:,}",
        "tokens, with a separator after each document": lambda split, text: f"{_tokens(split) + split['documents']:,}",
        "text, MB": lambda split, text: f"{text['text_bytes'] / 1e6:,.2f}",
        "words": lambda split, text: f"{text['words']:,}",
        "tokens per word": lambda split, text: _ratio(_tokens(split), text["words"]),
        "bytes per token": lambda split, text: _ratio(text["text_bytes"], _tokens(split)),
        "unknown tokens": lambda split, text: _share(text["unknown_tokens"], _tokens(split)),
        "tokens per document, mean": lambda split, text: f"{_tokens(split) / split['documents']:,.0f}",
        "tokens per document, median (about)": lambda split, text: f"{median_length(text['lengths']):,.0f}",
        "tokens of the longest document": lambda split, text: f"{text['longest_document']:,}",
        "shards": lambda split, text: f"{len(split['shards']):,}",
    }
    rows = [[name, *(figure(*counts) for counts in splits.values())] for name, figure in figures.items()]
    held_out = (
        f"{100 * index['held_out_fraction']:.3g}% of the documents are held out, as `validation`. "
        "The id of a document decides, so it stays on its side when the corpus grows."
    )
    return "\n".join(["## Size", "", *table(["", *splits], rows), "", held_out])


def _cleaning(index: Index) -> str:
    fates = documents_by_fate(index)
    rows = [[REASON_TEXTS.get(fate, fate), f"{count:,}", _share(count, fates["read"])] for fate, count in fates.items()]
    options = [f"- {escaped(name)}: {escaped(_option(value))}" for name, value in index.get("cleaning", {}).items()]
    shown = options or ["No option of cleaning was set."]
    bad = index["statistics"].get("bad_records", {})
    counts = ", ".join(f"{count:,} {BAD_RECORD_TEXTS.get(kind, kind)}" for kind, count in bad.items())
    skipped = ["", f"Before that, {sum(bad.values()):,} records could not be read: {counts}."] if bad else []
    return "\n".join(["## Cleaning", "", *shown, "", *table(["Documents", "Number", "Share"], rows), *skipped])


def _lengths(index: Index) -> str:
    """Draws a histogram of all splits together."""
    bins = add_counts(index["statistics"]["splits"].values())["lengths"]
    most, total = max(count for _, count in bins), sum(count for _, count in bins)
    lines = [
        f"{start:>10,}  {'█' * round(_BAR * count / most) or '▏':<{_BAR}}  {count:>12,}  {_share(count, total):>7}"
        for start, count in bins
    ]
    about = "Documents of at least so many tokens, and fewer than the next bin begins with; empty bins are left out."
    return "\n".join(["## Lengths of documents", "", about, "", "```text", *lines, "```"])


def _tokenizer(index: Index) -> str:
    ids = ", ".join(f"{role} {index['special_ids'][role]}" for role in sorted(index["special_ids"]))
    return (
        "## Tokenizer\n\n"
        f"In `tokenizer/`: {index['vocab_size']:,} tokens, fingerprint {escaped(index['tokenizer'])}; ids of the special "
        f"tokens: {ids}.\nA model that is trained on the corpus has the same tokenizer."
    )


def _use() -> str:
    return (
        "## Use\n\n"
        "```\n"
        "python -m bert_jax.pretrain --config=configs/bert_base.py --config.data.corpus=FOLDER --workdir=runs/mine\n"
        "python tools/corpus_stats.py --corpus=FOLDER        # a page with plots\n"
        "```\n\n"
        "`Corpus.open(FOLDER)` of bert_jax and `tensorflow_datasets.builder_from_directory(FOLDER)` read it, too.\n"
        f"`tools/prepare_corpus.py` has written this page from `{INDEX_FILE}`, which has the same figures."
    )


def _option(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _tokens(split: Split) -> int:
    """Returns the tokens of a split without separators, of which each document has one."""
    return sum(shard["tokens"] for shard in split["shards"]) - split["documents"]


def _ratio(value: int, of: int) -> str:
    return f"{value / of:.2f}" if of else "-"


def _share(value: int, of: int) -> str:
    return f"{value / of:.2%}" if of else "-"

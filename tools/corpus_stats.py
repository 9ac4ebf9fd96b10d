"""Writes a page about a prepared corpus: sizes, lengths of documents, what cleaning dropped, tokens, beginnings of documents.

    python tools/corpus_stats.py --corpus=corpora/mine [--output=corpora/mine/statistics.html]

Reads the whole corpus once. The page is self-contained, without scripts.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import flags
from markupsafe import Markup

from bert_jax.cli.main import run_command
from bert_jax.cli.progress import Progress
from bert_jax.data.corpus.card import REASON_TEXTS, documents_by_fate
from bert_jax.data.corpus.format import Corpus
from bert_jax.data.corpus.index import TOKENIZER_FOLDER, Index, read_index
from bert_jax.data.corpus.remote_folder import local_folder
from bert_jax.data.corpus.shards import SPLITS
from bert_jax.data.remote import is_url
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import write_text
from tools.lib import corpus_plots as plots
from tools.lib.corpus_flag import check_corpus_flag
from tools.lib.corpus_scan import Scan, scan
from tools.lib.report_html import page, quantity, table

PAGE_FILE = "statistics.html"
MOST_FREQUENT, BEGINNINGS, BEGINNING_TOKENS = 8, 6, 80
RARE = 100  # occurrences, below which little is learned about a token


def define_flags() -> None:
    flags.DEFINE_string("corpus", None, "Folder made by tools/prepare_corpus.py.", required=True)
    flags.DEFINE_string("output", "", "The page; '': statistics.html in the corpus.")


def main() -> None:
    values = flags.FLAGS
    check_corpus_flag(values.corpus)
    if is_url(values.corpus) and not values.output:
        raise UserError(f"--corpus={values.corpus}: is not local; set --output to a file for the page")
    output = Path(values.output or Path(values.corpus) / PAGE_FILE)
    write_text(output, corpus_page(values.corpus))
    print(output)


def corpus_page(corpus: str | Path) -> str:
    """Returns the page of a corpus as HTML. Raises UserError as `Corpus.open`, and if a file is damaged."""
    folder = local_folder(corpus)
    index = read_index(folder)
    splits = {split: Corpus.open(corpus, split) for split in SPLITS if split in index["splits"]}
    tokenizer = Tokenizer.load(folder / TOKENIZER_FOLDER)
    with Progress("reading", of="shards") as progress:
        scans = {split: scan(corpus, progress.count) for split, corpus in splits.items()}
    largest = next(iter(splits))  # train, unless all documents are held out
    sections = [
        header(index, splits),
        tiles(index, scans),
        _section("Documents", length_plots(scans, largest)),
        _section("Cleaning", cleaning_part(index)),
        _section("Tokens", tokens_part(scans[largest], tokenizer)),
        _section("Beginnings of documents", beginnings(splits[largest], tokenizer)),
    ]
    return page("Corpus", Markup().join(sections))


def header(index: Index, splits: Mapping[str, Corpus]) -> Markup:
    """Describes source, size and tokenizer."""
    total = sum(corpus.num_tokens for corpus in splits.values())
    size = ", ".join(f"{split}: {corpus.summary}" for split, corpus in splits.items())
    return Markup("<header><h1>{}</h1><p>{} · {} · tokenizer {}, {} tokens</p></header>").format(
        f"Corpus of {quantity(total)} tokens", index["source"], size, index["tokenizer"], f"{index['vocab_size']:,}"
    )


def tiles(index: Index, scans: Mapping[str, Scan]) -> Markup:
    """Returns the most important figures, of all splits together."""
    tokens = sum(int(of_split.tokens.sum()) for of_split in scans.values())
    documents = sum(int(of_split.documents.sum()) for of_split in scans.values())
    unknown = sum(int(of_split.token_counts[index["special_ids"]["unk"]]) for of_split in scans.values())
    shown = [(f"{documents:,}", "documents"), (quantity(tokens), "tokens without separators")]
    shown.append((f"{tokens / documents:,.0f}", "tokens per document, mean"))
    if (statistics := index.get("statistics")) is not None:
        words = sum(counts["words"] for counts in statistics["splits"].values())
        shown.append((f"{tokens / words:.2f}" if words else "-", "tokens per word"))
        dropped = sum(statistics["dropped"].values())
        shown.append((f"{dropped / max(1, statistics['documents_read']):.1%}", "documents that cleaning dropped"))
    shown.append((f"{unknown / tokens:.2%}", "unknown tokens"))
    cells = Markup().join(Markup("<div><b>{}</b><span>{}</span></div>").format(*of) for of in shown)
    return Markup("<section class=tiles>{}</section>").format(cells)


def length_plots(scans: Mapping[str, Scan], largest: str) -> Markup:
    """Draws the lengths of documents."""
    return _pair(plots.length_histogram(scans), plots.cumulative_lengths(scans[largest]))


def cleaning_part(index: Index) -> Markup:
    """Shows what became of the documents that were read, if it was counted."""
    if "statistics" not in index:
        note = "An older version prepared this corpus, which counted neither words nor the documents that were dropped."
        return Markup("<p>{}</p>").format(note)
    fates = documents_by_fate(index)
    rows = [
        [REASON_TEXTS.get(fate, fate), f"{count:,}", f"{count / max(1, fates['read']):.2%}"]
        for fate, count in fates.items()
    ]
    return _pair(plots.document_fates(fates), table(["Documents", "Number", "Share"], rows))


def tokens_part(of_split: Scan, tokenizer: Tokenizer) -> Markup:
    """Shows how often tokens occur, and the most frequent ones."""
    counts = of_split.token_counts
    total, order = max(1, int(counts.sum())), np.argsort(-counts, kind="stable")[:MOST_FREQUENT]
    ordinary = np.delete(counts, tokenizer.special_ids)
    unused, rare = int(np.count_nonzero(ordinary == 0)), int(np.count_nonzero(ordinary < RARE))
    note = (
        f"Of {len(ordinary):,} tokens, special ones aside, {unused:,} do not occur, and {rare:,} occur less than {RARE} times. "
        f"The most frequent {MOST_FREQUENT} are {counts[order].sum() / total:.1%} of the text."
    )
    used = [token for token in order.tolist() if counts[token]]
    names = zip(used, tokenizer.tokens(used), strict=True)
    rows = [[name, f"{counts[token]:,}", f"{counts[token] / total:.2%}"] for token, name in names]
    shown = _pair(plots.token_frequencies(counts), table(["Token", "Occurrences", "Share"], rows))
    return shown + Markup("<p class=note>{}</p>").format(note)


def beginnings(corpus: Corpus, tokenizer: Tokenizer) -> Markup:
    """Shows the first tokens of some shards, each of which begins with a document."""
    shards = np.unique(np.linspace(0, len(corpus.shard_tokens) - 1, BEGINNINGS).astype(int))
    lengths = np.minimum(BEGINNING_TOKENS, corpus.shard_tokens[shards])
    rows = [corpus.tokens(shards[[row]], np.zeros(1, int), int(length))[0] for row, length in enumerate(lengths)]
    separator = corpus.special_ids["sep"]
    texts = [tokenizer.decode(row[: np.append(np.flatnonzero(row == separator), len(row))[0]]) for row in rows]
    return table(["Shard", "Text"], [[str(shard), text] for shard, text in zip(shards, texts, strict=True)])


def _section(title: str, content: Markup) -> Markup:
    return Markup("<section><h2>{}</h2>{}</section>").format(title, content)


def _pair(left: Markup, right: Markup) -> Markup:
    """Returns two parts next to each other."""
    return Markup("<div class=grid><figure>{}</figure><figure>{}</figure></div>").format(left, right)


if __name__ == "__main__":
    define_flags()
    run_command(main)

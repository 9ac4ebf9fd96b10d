"""Draws the plots of tools/corpus_stats.py: lengths of documents, what cleaning dropped, frequencies of tokens."""

from collections.abc import Mapping

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from bert_jax.data.corpus.statistics import LENGTH_BINS
from tools.lib.corpus_scan import Scan
from tools.lib.report_html import quantity
from tools.lib.report_plots import FAINT, HELD_OUT, INK, TRAIN, svg

COLORS = {"train": TRAIN, "validation": HELD_OUT}
_QUANTITY = FuncFormatter(lambda value, _: quantity(value))
MARKED_LENGTHS = (128, 512, 1024, 8192)  # usual sequence lengths


def length_histogram(scans: Mapping[str, Scan]) -> Markup:
    """Draws the share of documents in each bin of lengths, by split."""

    def draw(axes: Axes) -> None:
        for split, scan in scans.items():
            shares = 100 * scan.documents / max(1, scan.documents.sum())
            axes.stairs(shares[:-1], LENGTH_BINS, color=COLORS[split], label=split, linewidth=1.5, fill=False)
        _length_axis(axes, scans)
        axes.set_ylabel("% of documents")
        axes.legend(fontsize=8)

    return svg(draw, "Lengths of documents")


def cumulative_lengths(scan: Scan) -> Markup:
    """Draws the shares of documents, and of tokens, that documents of at most some length hold."""

    def draw(axes: Axes) -> None:
        ends = np.array(LENGTH_BINS[1:])
        for name, values, color in (("of documents", scan.documents, TRAIN), ("of tokens", scan.tokens, INK)):
            shares = 100 * np.cumsum(values) / max(1, values.sum())
            axes.plot(ends, shares[:-1], color=color, label=name, linewidth=1.5)
        longest = _length_axis(axes, {"": scan})
        for length in MARKED_LENGTHS:
            if length < longest:
                axes.axvline(length, color=FAINT, linewidth=0.8, linestyle=":")
                axes.annotate(f"{length:,}", (length, 101), ha="center", fontsize=7, color=INK)
        axes.set(ylim=(0, 108), ylabel="%")
        axes.legend(fontsize=8, loc="lower right")

    return svg(draw, "In documents shorter than this")


def token_frequencies(counts: np.ndarray) -> Markup:
    """Draws how often tokens occur over their rank, both logarithmic, for counts [V]."""
    used = np.sort(counts[counts > 0])[::-1]
    ranks = np.unique(np.geomspace(1, max(1, len(used)), 400).astype(int))  # enough for a smooth line

    def draw(axes: Axes) -> None:
        if len(used):
            axes.plot(ranks, used[ranks - 1], color=TRAIN, linewidth=1.6)
        axes.set(xscale="log", yscale="log", xlabel="rank of the token", ylabel="occurrences")
        axes.xaxis.set_major_formatter(_QUANTITY)
        axes.yaxis.set_major_formatter(_QUANTITY)

    return svg(draw, "Frequencies of tokens")


def document_fates(fates: Mapping[str, int]) -> Markup:
    """Draws a bar for each {what became of documents: number}, on a logarithmic scale."""

    def draw(axes: Axes) -> None:
        values = list(fates.values())
        colors = [TRAIN if name in ("read", "kept") else HELD_OUT for name in fates]
        drawn = axes.barh(range(len(values)), values, color=colors, height=0.65)
        axes.bar_label(drawn, [f"{value:,}" for value in values], padding=4, color=INK, fontsize=8)
        axes.set_yticks(range(len(values)), [name.replace("_", " ") for name in fates])
        axes.invert_yaxis()
        axes.set(xscale="log", xlim=(0.5, 8 * max(1, *values)), xlabel="documents")
        axes.xaxis.set_major_formatter(_QUANTITY)
        axes.grid(axis="y", visible=False)

    return svg(draw, "Documents read, dropped and kept")


def _length_axis(axes: Axes, scans: Mapping[str, Scan]) -> int:
    """Sets a logarithmic axis of lengths to what occurs; returns the end of the last bin that is not empty."""
    occurs = np.flatnonzero(sum(scan.documents for scan in scans.values()))
    first, last = (int(occurs[0]), int(occurs[-1])) if len(occurs) else (0, 0)
    longest = LENGTH_BINS[min(last + 1, len(LENGTH_BINS) - 1)]
    axes.set(xscale="log", xlim=(max(0.8, LENGTH_BINS[first] / 1.2), 1.2 * longest), xlabel="tokens of a document")
    axes.xaxis.set_major_formatter(_QUANTITY)
    return longest

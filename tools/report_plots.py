"""The report's plots, each as inline SVG made of rows of metrics.jsonl."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bert_jax.train.metrics import Row

TRAIN, HELD_OUT, MARK, FAINT, INK = "#2f6fde", "#e8710a", "#c2255c", "#9aa4b2", "#3c4452"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, and in the page's font
    "svg.hashsalt": "bert_jax",  # the same file for the same run
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.grid": True,
    "grid.color": "#e6e9ee",
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.axisbelow": True,
    "axes.labelpad": 7,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
}
_MOST_POINTS = 600  # of a curve in the file


def curve(
    rows: Sequence[Row],
    name: str,
    title: str,
    *,
    stopped: int | None = None,
    baseline: tuple[str, float] | None = None,
    scale: float = 1.0,
    unit: str = "",
) -> str:
    """A metric over steps: training and, where there is one, held-out; '' where no row has it.

    Args:
      rows: of metrics.jsonl.
      name: of the metric in training; held-out it is 'eval/NAME'.
      title: above the plot.
      stopped: the step at which the run was interrupted, marked.
      baseline: (label, value) of a horizontal line.
      scale: factor, e.g. 100 for percent.
      unit: written at the axis.
    """
    steps, values = points(rows, name)
    eval_steps, eval_values = points(rows, f"eval/{name}")
    if not len(steps) and not len(eval_steps):
        return ""

    def draw(axes: Axes) -> None:
        if len(steps):
            draw_training(axes, steps, values * scale)
        if len(eval_steps):
            axes.plot(eval_steps, eval_values * scale, "o-", color=HELD_OUT, markersize=3.5, label="held-out")
        if baseline is not None:
            axes.axhline(baseline[1] * scale, color=INK, linestyle=":", linewidth=1.2, label=baseline[0])
        if stopped is not None:
            axes.axvline(stopped, color=MARK, linestyle="--", linewidth=1, label="stopped and resumed")
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        if len(eval_steps):
            axes.legend(fontsize=8)

    return svg(draw, title)


def draw_training(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    """Every step faintly, and a running mean. Outliers, such as the first steps' rates, do not set the scale."""
    window = max(1, len(values) // 60)
    kept = slice(None, None, -(-len(steps) // _MOST_POINTS))
    if window > 1:
        axes.plot(steps[kept], values[kept], color=TRAIN, alpha=0.25, linewidth=0.8)
    axes.plot(steps[kept], running_mean(values, window)[kept], color=TRAIN, label="training", linewidth=1.6)


def replay_plot(rows: Sequence[Row], replay: dict[int, float], stopped: int) -> str:
    """The loss around the interruption, and over it that of the replay without one."""
    steps, values = points(rows, "loss")
    first, last = min(replay), max(replay)
    near = (steps >= first) & (steps <= last)

    def draw(axes: Axes) -> None:
        before, after = near & (steps <= stopped), near & (steps > stopped)
        axes.plot(steps[before], values[before], "o-", color=TRAIN, markersize=4, label="run, before the stop")
        axes.plot(steps[after], values[after], "o-", color=HELD_OUT, markersize=4, label="run, resumed")
        axes.plot(list(replay), list(replay.values()), "x", color=INK, markersize=7, label="replay without a stop")
        axes.axvline(stopped + 0.5, color=MARK, linestyle="--", linewidth=1)
        axes.set_xlabel("step")
        axes.margins(y=0.1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.figure.legend(fontsize=8, ncols=3, loc="outside upper center")

    return svg(draw, "", width=9.2, height=2.5)


def bars(rows: Sequence[tuple[str, float]], highlighted: int) -> str:
    """Draws a horizontal bar for each (name, F1), one of them in the strong colour."""

    def draw(axes: Axes) -> None:
        names, values = zip(*rows, strict=True)
        colors = [TRAIN if number == highlighted else "#b9c6dc" for number in range(len(rows))]
        drawn = axes.barh(range(len(rows)), values, color=colors, height=0.65)
        axes.bar_label(drawn, [f"{value:.3f}" for value in values], padding=4, color=INK)
        axes.set_yticks(range(len(rows)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel("held-out F1")
        axes.grid(axis="y", visible=False)

    return svg(draw, "", width=9.2, height=0.45 * len(rows) + 0.6)


def spreads(title: str, values: dict[str, tuple[float, float]]) -> str:
    """A point with an error bar for each {name: (mean, standard deviation)}, one below the other."""

    def draw(axes: Axes) -> None:
        means, deviations = zip(*values.values(), strict=True)
        axes.errorbar(means, range(len(values)), xerr=deviations, fmt="o", color=TRAIN, ecolor=HELD_OUT, capsize=4)
        axes.set_yticks(range(len(values)), list(values))
        axes.invert_yaxis()
        axes.margins(x=0.1, y=0.2)
        axes.grid(axis="y", visible=False)

    return svg(draw, title, height=0.35 * len(values) + 0.9)


def svg(draw: Callable[[Axes], None], title: str, width: float = 4.5, height: float = 2.6) -> str:
    """What `draw` puts on axes, as an <svg> element. Sizes are in inches, but the page scales it to its column."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        axes.set_title(title)
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    text = file.getvalue()
    return text[text.index("<svg") :]


def points(rows: Sequence[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the rows that have the metric."""
    having = [row for row in rows if name in row]
    return np.array([row["step"] for row in having]), np.array([row[name] for row in having], float)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred means over about `window` values, over fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - window // 2, 0), np.minimum(index + window // 2 + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)

"""Draws the plots of reports as inline SVG; names are shown literally, and shortened."""

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bert_jax.errors import plain
from tools.lib.run_files import History

TRAIN, HELD_OUT, MARK, FAINT, INK = "#2f6fde", "#e8710a", "#c2255c", "#9aa4b2", "#3c4452"
OTHERS = ("#2b8a3e", "#7048e8", "#0b7285")  # held-out text of further corpora
OF_RUNS = (TRAIN, HELD_OUT, *OTHERS, MARK, "#5c4630", "#868e96")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # small files, and the font of the page
    "svg.hashsalt": "bert_jax",  # deterministic output
    "text.parse_math": False,  # names with dollar signs are not formulas
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelpad": 7,
    "grid.color": "#e6e9ee",
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
}
_STYLE |= dict.fromkeys(("axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK)
_STYLE |= {"axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False}
_MOST_POINTS = 600  # per curve
_LONGEST_NAME = 60  # characters
_LARGEST = 1e38  # about the largest float32; matplotlib cannot choose ticks for much larger numbers


def curve(
    history: History,
    name: str,
    title: str,
    *,
    stopped: int | None = None,
    borders: Sequence[int] = (),
    baseline: tuple[str, float] | None = None,
    scale: float = 1.0,
    unit: str = "",
    is_noisy: bool = True,
) -> Markup:
    """Draws a metric over steps, in training (NAME) and held-out (eval/NAME, eval/CORPUS/NAME); '' if there are no values.

    Args:
      borders: the steps at which phases end, marked.
      stopped: the step at which the run was interrupted, marked.
      baseline: (label, value) of a horizontal line.
      scale: factor, e.g. 100 for percent.
      unit: label of the axis.
      is_noisy: show the running mean of a long curve over the curve itself.
    """
    steps, values = drawable(history, name, scale)
    eval_steps, eval_values = thinned(*drawable(history, f"eval/{name}", scale))
    others = sorted(other for other in history.names if other.startswith("eval/") and other.endswith(f"/{name}"))
    others = [other for other in others if other != f"eval/{name}"][: len(OTHERS)]
    if not len(steps) and not len(eval_steps):
        return Markup()

    def draw(axes: Axes) -> None:
        if (window := max(1, len(values) // 60) if is_noisy else 1) > 1:
            axes.plot(*thinned(steps, values), color=TRAIN, alpha=0.25, linewidth=0.8)
        if len(steps):
            axes.plot(*thinned(steps, running_mean(values, window)), color=TRAIN, label="training", linewidth=1.6)
        if len(eval_steps):
            axes.plot(eval_steps, eval_values, "o-", color=HELD_OUT, markersize=3.5, label="held-out")
        for other, color in zip(others, OTHERS, strict=False):
            corpus = other.removeprefix("eval/").removesuffix(f"/{name}")
            axes.plot(*thinned(*drawable(history, other, scale)), "o-", color=color, markersize=3, label=_label(corpus))
        for border in borders:
            axes.axvline(border, color=FAINT, linewidth=1, zorder=0.5)
        if baseline is not None:
            axes.axhline(_bounded(baseline[1] * scale), color=INK, linestyle=":", linewidth=1.2, label=baseline[0])
        if stopped is not None:
            axes.axvline(stopped, color=MARK, linestyle="--", linewidth=1, label="stopped and resumed")
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_ylabel(unit)
        if len(eval_steps):
            axes.legend(fontsize=8)

    return svg(draw, title)


def curves_of_runs(
    runs: Sequence[tuple[Callable[[np.ndarray], np.ndarray], History]],
    name: str,
    title: str,
    axis: str,
    scale: float,
    unit: str,
) -> Markup:
    """Draws a metric of several runs, each in its color of `OF_RUNS`; '' if none has it.

    Args:
      runs: function from steps to the horizontal axis, and metrics of each.
      name: of the metric, in training; held-out values are those of eval/NAME.
      axis: label of the horizontal axis.
      scale: factor, e.g. 100 for percent.
      unit: label of the vertical axis.
    """
    kinds = [(kind, [history.points(kind)[0] for _, history in runs]) for kind in (name, f"eval/{name}")]
    if not any(len(steps) for _, of_runs in kinds for steps in of_runs):
        return Markup()

    def draw(axes: Axes) -> None:
        for (position, history), color in zip(runs, OF_RUNS, strict=False):
            steps, values = drawable(history, name, scale)
            steps, values = thinned(steps, running_mean(values, max(1, len(values) // 60)))
            held_out_steps, held_out = thinned(*drawable(history, f"eval/{name}", scale))
            if len(steps):
                faint: dict[str, Any] = {"alpha": 0.55, "linewidth": 1.0} if len(held_out) else {"linewidth": 1.4}
                faint |= {"marker": "."} if len(steps) == 1 else {}
                axes.plot(position(steps), values, color=color, **faint)
            if len(held_out):
                axes.plot(position(held_out_steps), held_out, "o-", color=color, markersize=3.5)
        axes.set_xlabel(axis)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=axis == "step"))
        axes.set_ylabel(unit)

    return svg(draw, title)


def replay_plot(history: History, replay: dict[int, float], stopped: int) -> Markup:
    """Draws the losses around an interruption, and those of the replay without it."""
    steps, values = drawable(history, "loss")
    near = (steps >= min(replay)) & (steps <= max(replay))
    steps, values = thinned(steps[near], values[near])
    replayed = thinned(np.array(list(replay)), _bounded(np.array(list(replay.values()))))

    def draw(axes: Axes) -> None:
        before, after = steps <= stopped, steps > stopped
        for part, color, label in ((before, TRAIN, "run, before the stop"), (after, HELD_OUT, "run, resumed")):
            axes.plot(steps[part], values[part], "o-", color=color, markersize=4, label=label)
        axes.plot(*replayed, "x", color=INK, markersize=7, label="replay without a stop")
        axes.axvline(stopped + 0.5, color=MARK, linestyle="--", linewidth=1)
        axes.set_xlabel("step")
        axes.margins(y=0.1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.figure.legend(fontsize=8, ncols=3, loc="outside upper center")

    return svg(draw, "", width=9.2, height=2.5)


def bars(rows: Sequence[tuple[str, float]], highlighted: int, metric: str) -> Markup:
    """Draws a horizontal bar for each (name, value of a metric), one of them highlighted."""

    def draw(axes: Axes) -> None:
        names, values = [_label(name) for name, _ in rows], [value for _, value in rows]
        colors = [TRAIN if number == highlighted else "#b9c6dc" for number in range(len(rows))]
        drawn = axes.barh(range(len(rows)), values, color=colors, height=0.65)
        axes.bar_label(drawn, [f"{value:.3f}" for value in values], padding=4, color=INK)
        axes.set_yticks(range(len(rows)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel(f"held-out {_label(metric)}")
        axes.grid(axis="y", visible=False)

    return svg(draw, "", width=9.2, height=0.45 * len(rows) + 0.6)


def reliability(bins: dict[str, list[tuple[float, float, int]]]) -> Markup:
    """Draws accuracy over confidence for each {name: [(confidence, accuracy, number of examples) of a bin]}."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=FAINT, linestyle="--", linewidth=1)
        for (name, of_bins), color in zip(bins.items(), (HELD_OUT, TRAIN), strict=False):
            confidence, accuracy, counts = np.array(of_bins).T
            axes.plot(confidence, accuracy, "-", color=color, linewidth=1.2)
            axes.scatter(confidence, accuracy, s=15 + 150 * counts / counts.sum(), color=color, label=_label(name))
        axes.set(xlim=(0, 1.02), ylim=(-0.03, 1.05), xlabel="probability of the predicted label")
        axes.set_ylabel("share right")
        axes.legend(fontsize=8, loc="lower right")

    return svg(draw, "")


def spreads(title: str, values: dict[str, tuple[float, float]]) -> Markup:
    """Draws a point with an error bar for each {name: (mean, standard deviation)}."""

    def draw(axes: Axes) -> None:
        means, deviations = _bounded(np.array(list(values.values()))).T
        axes.errorbar(means, range(len(values)), xerr=deviations, fmt="o", color=TRAIN, ecolor=HELD_OUT, capsize=4)
        axes.set_yticks(range(len(values)), list(map(_label, values)))
        axes.invert_yaxis()
        axes.margins(x=0.1, y=0.2)
        axes.grid(axis="y", visible=False)

    return svg(draw, title, height=0.35 * len(values) + 0.9)


def svg(
    draw: Callable[[Axes], None], title: str, width: float = 4.5, height: float = 2.6, transparent: bool = True
) -> Markup:
    """Returns the result of `draw(axes)` as an <svg> element; sizes in inches, but the page scales it."""
    file = io.StringIO()
    with plt.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # e.g. missing glyphs, and names that leave no space for axes
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        axes.set_title(_label(title))
        draw(axes)
        figure.savefig(file, format="svg", transparent=transparent, metadata={"Date": None})
        plt.close(figure)
    text = file.getvalue()
    return Markup(text[text.index("<svg") :])  # matplotlib escapes text


def drawable(history: History, name: str, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps and values of a metric times `scale`, clipped to what can be drawn."""
    steps, values = history.points(name)
    return steps, _bounded(values * scale)


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most `_MOST_POINTS` of the points."""
    kept = slice(None, None, max(1, -(-len(steps) // _MOST_POINTS)))
    return steps[kept], values[kept]


def _bounded(values: Any) -> Any:
    return np.clip(values, -_LARGEST, _LARGEST)


def _label(name: str) -> str:
    return plain(name, _LONGEST_NAME)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Returns centred means over about `window` values, fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - window // 2, 0), np.minimum(index + window // 2 + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)

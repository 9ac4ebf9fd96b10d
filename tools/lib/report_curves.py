"""Chooses the metrics that reports plot, and draws those of one run or of several over each other."""

from collections.abc import Collection, Sequence
from functools import partial
from typing import NamedTuple

from markupsafe import Markup

from tools.lib import report_plots as plots
from tools.lib.run_files import History, Unigram

_MOST_OBJECTIVES, _MOST_SCORES = 12, 8  # with plots
_DISTANCES = {"cosine", "hidden_mse"}  # losses of distillation that are no negative log-likelihoods
_NO_SCORES = {"loss", "temperature"}  # held-out values without a curve of their own


class Metric(NamedTuple):
    """A metric with a plot; `scale` is a factor, e.g. 100 for percent."""

    name: str  # in training; held-out values are those of eval/NAME
    title: str
    scale: float = 1.0
    unit: str = ""
    is_noisy: bool = True
    objective: str = ""


def plotted_metrics(names: Collection[str]) -> list[Metric]:
    """Returns losses and accuracies of each objective, held-out scores, learning rate, gradient norm and throughput."""
    losses = [name.split("/") for name in names if name.endswith("/loss")]
    corpora = {of_corpus for _, of_corpus, *rest in losses if len(rest) > 1}  # eval/CORPUS/TERM/loss
    objectives = sorted({name[-2] for name in losses} - {"eval"} - corpora)
    metrics = []
    for objective in objectives[:_MOST_OBJECTIVES]:
        unit = "" if objective in _DISTANCES else "nats"
        metrics.append(Metric(f"{objective}/loss", f"{objective} loss", unit=unit, objective=objective))
        metrics.append(Metric(f"{objective}/accuracy", f"{objective} accuracy", 100.0, "%", objective=objective))
    scores = [name.removeprefix("eval/") for name in names if name.startswith("eval/") and name.count("/") == 1]
    for score in [name for name in sorted(scores) if name not in _NO_SCORES][:_MOST_SCORES]:
        is_share = score == "accuracy"
        metrics.append(Metric(score, f"held-out {score}", 100.0 if is_share else 1.0, "%" if is_share else ""))
    return [
        *metrics,
        Metric("learning_rate", "learning rate", is_noisy=False),
        Metric("gradient_norm", "gradient norm"),
        Metric("tokens_per_second", "throughput", 1e-3, "thousand tokens / s"),
        Metric("data_wait_seconds", "waiting for data", 1e3, "ms a step"),
    ]


def curves(history: History, unigram: Unigram | None, stopped: int | None, borders: Sequence[int]) -> Markup:
    """Plots the metrics of a run; phases end at `borders`."""
    curve = partial(plots.curve, history, stopped=stopped, borders=borders)
    drawn = []
    for name, title, scale, unit, is_noisy, objective in plotted_metrics(history.names):
        kind = name.split("/")[-1]
        baseline = ("unigrams", getattr(unigram, kind)) if objective == "mlm" and unigram else None
        drawn.append(curve(name, title, baseline=baseline, scale=scale, unit=unit, is_noisy=is_noisy))
    note = Markup("<p>Grey lines: a phase ends.</p>") if borders else Markup()
    return Markup("<section><h2>Curves</h2>{}<div class=grid>{}</div></section>").format(note, figures(drawn))


def figures(drawings: Sequence[Markup]) -> Markup:
    """Returns drawings as figures, without the empty ones."""
    return Markup().join(Markup("<figure>{}</figure>").format(drawing) for drawing in drawings if drawing)

"""Writes the page of tools/compare_recipes.py: tables in README.md, and curves of held-out loss as SVG."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from bert_jax.files import write_text
from bert_jax.markdown import escaped, table
from tools.lib import report_plots as plots
from tools.lib.recipes_records import Record, Records
from tools.lib.recipes_sheet import Experiment

LOSS, ACCURACY = "mlm/loss", "mlm/accuracy"
TERA, MILLION = 1e12, 1e6
Seeds = dict[str, list[Record]]  # the records of each experiment by name, in the order of the sheet

NOTE = """\
Means over seeds ± their standard deviation. Held-out loss and accuracy are those of masked language modelling on the same rows
for all: full windows, of whose tokens 15% are predicted (80% `[MASK]`, 10% random, 10% kept), whatever training does.
Replaced-token detection has no such loss. Recipes on pairs of segments never see such rows in training, and some of their
tokens are padding, so compare them by their scores as well. FLOPs are those of the matrix products in a training step, counted
in the traced program: forward and backward pass, with what it computes again, of all models (a generator, a teacher) and the
optimizer. Muon's own are a fixed number for each step, so with larger batches they count less."""
BUDGETS = """\
**Equal tokens**: all recipes see the same number of tokens, padding included, except rows whose titles name FLOPs. A student
also starts from layers of its trained teacher, whose own training is not counted. **Equal FLOPs**: "loss at {flops:,.0f} TFLOP"
is interpolated linearly on each curve at the largest number of FLOPs that all runs reached. There the learning rate of longer
runs has not decayed yet, which puts them at a disadvantage; rows whose titles name FLOPs were trained for fewer steps instead,
so that their scores compare as well."""
DIFFERENCES = """\
First minus second, means of the differences between runs of the same seed, and in brackets each of them. A single fine-tuning
run for each pretraining run also adds its noise: the standard error of an accuracy on MRPC's 408 examples is 0.02."""
OBJECTIVES = "Held-out metrics of each recipe's own objectives, which are not comparable between recipes."


def write(folder: Path, experiments: Sequence[Experiment], records: Records) -> None:
    """Writes README.md and GROUP_tokens.svg, GROUP_flops.svg for each group with curves."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = by_name(experiments, records)
    firsts = {experiment.name: experiment for experiment in experiments if experiment.name in seeds}
    pictures = list[str]()
    for group in dict.fromkeys(experiment.group for experiment in firsts.values()):
        names = [name for name, experiment in firsts.items() if experiment.group == group]
        shown = {
            firsts[name].title: seeds[name]
            for name in dict.fromkeys([*(firsts[name].against for name in names), *names])
            if name in firsts and seeds[name][0].points(LOSS)
        }
        if any(len(seeds[name][0].points(LOSS)) > 1 for name in names):
            for axis, label in (("tokens", "tokens"), ("flops", "FLOPs")):
                write_text(folder / f"{group}_{axis}.svg", curves(shown, axis))
                pictures.append(f"![Held-out loss against {label}: {group}]({group}_{axis}.svg)")
    write_text(folder / "README.md", "\n".join([*page(firsts, seeds), *pictures, ""]))


def by_name(experiments: Sequence[Experiment], records: Records) -> Seeds:
    """Returns the records of each experiment that has some."""
    seeds: Seeds = {}
    for experiment in experiments:
        if experiment.key in records:
            seeds.setdefault(experiment.name, []).append(records[experiment.key])
    return seeds


def page(firsts: Mapping[str, Experiment], seeds: Seeds) -> list[str]:
    """Returns the lines of the page without pictures; `firsts` has an experiment for each name."""
    budgets = BUDGETS.format(flops=common_flops(seeds) / TERA)
    scores, differences = scores_table(firsts, seeds), differences_table(firsts, seeds)
    objectives = objective_lines(firsts, seeds)
    return [
        *("# Recipes compared", "", "Written by `tools/compare_recipes.py --sheet` from the JSON files here.", ""),
        *(NOTE, "", budgets, "", "## Pretraining", ""),
        *pretraining_table(firsts, seeds),
        *(["", "## Fine-tuning", "", *scores] if scores else []),
        *(["", "## Differences", "", DIFFERENCES, "", *differences] if differences else []),
        *(["", "## Objectives", "", OBJECTIVES, "", *objectives] if objectives else []),
        *("", *student_lines(firsts, seeds), ""),
    ]


# ----------------------------------------------------------------------------------------------------------------------
# Tables
# ----------------------------------------------------------------------------------------------------------------------


def pretraining_table(firsts: Mapping[str, Experiment], seeds: Seeds) -> list[str]:
    """Returns the lines of a table with a row for each recipe that was pretrained."""
    flops = common_flops(seeds)
    at_flops = f"Loss at {flops / TERA:,.0f} TFLOP"
    rows = []
    for name, records in seeds.items():
        first = records[0]
        if not first.curve:
            continue
        rows.append(
            [
                firsts[name].title,
                f"{first.parameters / MILLION:.2f} M",
                f"{first.tokens / MILLION:.1f} M of {first.corpus_tokens / MILLION:.1f} M",
                f"{first.padding:.1%}",
                f"{first.flops / TERA:,.0f}",
                spread([last(record, LOSS) for record in records]),
                spread([last(record, ACCURACY) for record in records]),
                spread([loss_at(record, flops) for record in records]),
                spread([minutes(record) for record in records], 1),
            ]
        )
    columns = ["Recipe", "Parameters", "Tokens", "Padding", "TFLOP", "Held-out loss", "Accuracy"]
    return table([*columns, at_flops, "Core minutes"], rows)


def scores_table(firsts: Mapping[str, Experiment], seeds: Seeds) -> list[str]:
    """Returns the lines of a table with a row for each recipe and a column for each task; none without tasks."""
    tasks = {name: task["score"] for experiment in firsts.values() for name, task in experiment.tasks.items()}
    rows = [
        [
            firsts[name].title,
            *(spread([record.scores[task].get(score) for record in records]) for task, score in tasks.items()),
            spread([mean_score(firsts[name], record) for record in records]),
        ]
        for name, records in seeds.items()
    ]
    return table(["Recipe", *(f"{task} ({score})" for task, score in tasks.items()), "Mean"], rows) if tasks else []


def differences_table(firsts: Mapping[str, Experiment], seeds: Seeds) -> list[str]:
    """Returns the lines of a table of the experiments that are compared with another one; none without such ones."""
    rows = []
    for name in seeds:
        against = firsts[name].against
        if against in seeds:
            losses, scores = (
                [{record.seed: value(firsts[key], record) for record in seeds[key]} for key in (name, against)]
                for value in (lambda _, record: last(record, LOSS), mean_score)
            )
            rows.append([firsts[name].title, firsts[against].title, difference(*losses), difference(*scores)])
    return table(["Recipe", "Compared with", "Held-out loss", "Mean score"], rows) if rows else []


def objective_lines(firsts: Mapping[str, Experiment], seeds: Seeds) -> list[str]:
    """Returns, for each recipe, the means of the held-out metrics of objectives other than masked language modelling."""
    lines = []
    for name, records in seeds.items():
        metrics = [metric for metric in records[0].held_out if metric != "loss" and not metric.startswith("mlm/")]
        means = [f"{metric} {spread([record.held_out.get(metric) for record in records])}" for metric in metrics]
        if means:
            lines.append(f"- {escaped(firsts[name].title)}: {', '.join(means)}")
    return lines


def student_lines(firsts: Mapping[str, Experiment], seeds: Seeds) -> list[str]:
    """Returns what students keep of their teachers: parameters, speed and scores, as far as they were measured."""
    lines = []
    for name, records in seeds.items():
        teachers = seeds.get(firsts[name].teacher, [])
        if not teachers:
            continue
        parts = [f"has {records[0].parameters / teachers[0].parameters:.0%} of the parameters of its teacher"]
        if rates := [record.speed["student"] / record.speed["teacher"] for record in records if record.speed]:
            parts.append(f"reads {spread(rates, 2)} times as many texts a second")
        scores = [mean_score(firsts[name], record) for record in (*records, *teachers)]
        measured = [score for score in scores if score is not None]
        if len(measured) == len(scores):
            share = statistics.mean(measured[: len(records)]) / statistics.mean(measured[len(records) :])
            parts.append(f"reaches {share:.1%} of its mean score")
        lines.append(f"**{escaped(firsts[name].title)}** {', '.join(parts)}.")
    return lines


# ----------------------------------------------------------------------------------------------------------------------
# Numbers
# ----------------------------------------------------------------------------------------------------------------------


def common_flops(seeds: Seeds) -> float:
    """Returns the largest number of FLOPs that all runs with a loss of masked language modelling reached; 0 without runs."""
    ends = [record.flops for records in seeds.values() for record in records if record.points(LOSS)]
    return float(min(ends, default=0))


def loss_at(record: Record, flops: float) -> float | None:
    """Returns the held-out loss after a number of FLOPs, interpolated linearly; None without a loss, or outside the curve."""
    points = record.points(LOSS)
    if not points or not points[0][0] * record.flops_per_step <= flops <= points[-1][0] * record.flops_per_step:
        return None
    steps, losses = zip(*points, strict=True)
    return float(np.interp(flops / record.flops_per_step, steps, losses))


def last(record: Record, metric: str) -> float | None:
    points = record.points(metric)
    return points[-1][1] if points else None


def minutes(record: Record) -> float | None:
    """Returns how long pretraining took; None if it was interrupted."""
    seconds = record.seconds.get("pretraining")
    return None if seconds is None else seconds / 60


def mean_score(experiment: Experiment, record: Record) -> float | None:
    """Returns the mean of the scores that the sheet names; None without tasks, or if one of them is not finite."""
    scores = [record.scores[name].get(task["score"]) for name, task in experiment.tasks.items()]
    finite = [score for score in scores if score is not None]
    return statistics.mean(finite) if finite and len(finite) == len(scores) else None


def spread(values: Sequence[float | None], digits: int = 3) -> str:
    """Returns 'mean ± standard deviation' of several values, the value of a single one, and '-' without values."""
    measured = [value for value in values if value is not None]
    if not measured:
        return "-"
    deviation = f" ± {statistics.stdev(measured):.{digits}f}" if len(measured) > 1 else ""
    return f"{statistics.mean(measured):.{digits}f}{deviation}"


def difference(values: Mapping[int, float | None], others: Mapping[int, float | None]) -> str:
    """Returns the mean difference over the seeds that both have, and that of each seed; '-' without such a seed."""
    differences = [
        value - other for seed, value in values.items() if value is not None and (other := others.get(seed)) is not None
    ]
    if not differences:
        return "-"
    each = f" ({', '.join(f'{value:+.3f}' for value in differences)})" if len(differences) > 1 else ""
    return f"{statistics.mean(differences):+.3f}{each}"


def curves(seeds: Mapping[str, Sequence[Record]], axis: str) -> str:
    """Draws held-out loss against 'tokens' or 'flops': means over seeds, and the range between them."""
    unit, scale = ("M tokens", MILLION) if axis == "tokens" else ("TFLOP", TERA)

    def draw(axes: Axes) -> None:
        for title, records in seeds.items():
            first = records[0]
            per_step = first.tokens_per_step if axis == "tokens" else first.flops_per_step
            of_seeds = [dict(record.points(LOSS)) for record in records]
            steps = sorted(set.intersection(*map(set, of_seeds)))
            losses = np.array([[of_seed[step] for step in steps] for of_seed in of_seeds])
            at = np.array(steps) * per_step / scale
            (line,) = axes.plot(at, losses.mean(axis=0), "o-", markersize=3, linewidth=1.4, label=title)
            axes.fill_between(
                at, losses.min(axis=0), losses.max(axis=0), color=line.get_color(), alpha=0.2, linewidth=0
            )
        axes.set_xlabel(unit)
        axes.set_ylabel("held-out loss")
        axes.legend(fontsize=8)

    return plots.svg(draw, "", width=6.5, height=3.8, transparent=False)

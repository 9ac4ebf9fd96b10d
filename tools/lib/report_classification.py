"""Shows the predictions of a run that classifies texts: confusion matrix, scores of each class, calibration and errors.

They are read from predictions/validation.jsonl of the run folder, which evaluation writes, and of its evaluations/NAME/.
Shapes: N examples, C classes.
"""

import heapq
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from markupsafe import Markup
from scipy import special

from bert_jax.errors import UserError
from bert_jax.run_folder import folder as run_folder
from tools.lib import report_plots as plots
from tools.lib.report_html import number, table
from tools.lib.run_files import read_json_lines

FILE = f"{run_folder.PREDICTIONS}/validation.jsonl"
_NUM_BINS = 10
_MOST_ERRORS, _MOST_SETS, _MOST_CLASSES = 50, 10, 30  # shown; of classes in a matrix
_STEP = re.compile(r"step_\d+")  # predictions of a checkpoint that is not the default one
_REMEDY = "remove it, and run bert_jax.evaluate again"


class _Line(msgspec.Struct):
    """A line of the file."""

    texts: Annotated[list[str], msgspec.Meta(min_length=1, max_length=2)]
    label: str
    predicted: str
    logits: list[float | None]  # None: not finite


class Error(NamedTuple):
    """A text with a wrong prediction."""

    probability: float  # of the predicted label
    number: int  # of the line, from 1
    texts: list[str]
    label: str
    predicted: str


class Predictions(NamedTuple):
    """Gold and predicted classes and logits of a held-out set, and the errors that the model was surest of."""

    gold_N: np.ndarray
    predicted_N: np.ndarray
    logits_NxC: np.ndarray
    errors: list[Error]


class Calibration(NamedTuple):
    """How well probabilities agree with accuracies, at a temperature."""

    bins: list[tuple[float, float, int]]  # mean confidence, accuracy, number of examples
    expected_error: float  # ECE (Guo et al. 2017, section 2), over 10 bins
    loss: float  # negative log-likelihood, in nats


def held_out_sets(workdir: Path) -> Markup:
    """Returns a section for each held-out set of a run that classifies; '' for other runs.

    Raises:
      UserError: a file is damaged, or does not fit the labels of the run.
    """
    others = sorted(path.parent.parent for path in workdir.glob(f"evaluations/*/{FILE}"))
    folders = [workdir, *(folder for folder in others if not _STEP.fullmatch(folder.name))]
    existing = [folder for folder in folders if (folder / FILE).exists()]
    is_classifier = run_folder.read_config(workdir).get("problem", "classification") == "classification"
    if not existing or not is_classifier or not (labels := run_folder.read_labels(workdir)):
        return Markup()
    temperature = run_folder.read_value(workdir, run_folder.TEMPERATURE, 1.0)
    sections = []
    for folder in existing[:_MOST_SETS]:
        predictions = read_predictions(folder / FILE, labels, temperature)
        is_own = folder == workdir
        title = "Held out in training" if is_own else folder.name
        sections.append(section(title, labels, predictions, temperature, is_own))
    return Markup("\n").join(sections)


def read_predictions(path: Path, labels: Sequence[str], temperature: float) -> Predictions:
    """Reads a file of predictions. Raises UserError if it is empty, damaged or does not fit the labels."""
    classes = {label: place for place, label in enumerate(labels)}
    gold, predicted, logits = list[int](), list[int](), list[np.ndarray]()
    errors = list[tuple[float, int, Error]]()  # a heap of those with the highest probabilities
    for place, line in enumerate(read_json_lines(path, _Line), 1):
        if line.label not in classes or line.predicted not in classes or len(line.logits) != len(labels):
            raise UserError(f"{path}: line {place} does not fit the labels of the run; {_REMEDY}")
        # `None` becomes NaN; numbers outside the range of float32 are from no model.
        row = np.clip(np.nan_to_num(np.array(line.logits, float), nan=0.0), -1e30, 1e30)
        gold.append(classes[line.label])
        predicted.append(classes[line.predicted])
        logits.append(row)
        if line.label != line.predicted:
            probability = float(special.softmax(row / temperature)[predicted[-1]])
            error = Error(probability, place, line.texts, line.label, line.predicted)
            push = heapq.heappush if len(errors) < _MOST_ERRORS else heapq.heappushpop
            push(errors, (probability, -place, error))
    if not gold:
        raise UserError(f"{path}: empty; {_REMEDY}")
    shown = [error for *_, error in sorted(errors, reverse=True)]
    return Predictions(np.array(gold), np.array(predicted), np.stack(logits), shown)


def confusion_matrix(gold_N: np.ndarray, predicted_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns how many examples of each class (rows) were predicted as each class (columns), int64 [C, C]."""
    return np.bincount(gold_N * num_classes + predicted_N, minlength=num_classes**2).reshape(num_classes, num_classes)


def calibration(logits_NxC: np.ndarray, gold_N: np.ndarray, temperature: float) -> Calibration:
    """Compares the probability of the likeliest class with how often it is right, in bins of equal width."""
    log_probabilities_NxC = special.log_softmax(logits_NxC / temperature, axis=-1)
    confidence_N = np.exp(log_probabilities_NxC.max(-1))
    is_right_N = log_probabilities_NxC.argmax(-1) == gold_N
    bin_N = np.minimum((confidence_N * _NUM_BINS).astype(int), _NUM_BINS - 1)
    bins = [
        (float(confidence_N[of_bin].mean()), float(is_right_N[of_bin].mean()), int(of_bin.sum()))
        for of_bin in (bin_N == place for place in range(_NUM_BINS))
        if of_bin.any()
    ]
    expected = sum(abs(confidence - accuracy) * count for confidence, accuracy, count in bins) / len(gold_N)
    return Calibration(bins, expected, float(-log_probabilities_NxC[np.arange(len(gold_N)), gold_N].mean()))


# Sections are HTML, whose values are escaped by `Markup.format` and `Markup.join`.


def section(title: str, labels: Sequence[str], predictions: Predictions, temperature: float, is_own: bool) -> Markup:
    """Returns all that is shown of a held-out set; `is_own`: the one by which temperature and checkpoint were chosen."""
    matrix_CxC = confusion_matrix(predictions.gold_N, predictions.predicted_N, len(labels))
    num_right, num_examples = int(np.trace(matrix_CxC)), len(predictions.gold_N)
    heading = f"{title}: {num_right:,} of {num_examples:,} texts right, {num_right / num_examples:.1%}"
    chosen = "The checkpoint was chosen by these texts, so other data are harder." if is_own else ""
    parts = [
        matrix(labels, matrix_CxC) if len(labels) <= _MOST_CLASSES else Markup(),
        class_table(labels, matrix_CxC),
        reliability(predictions, temperature, is_own),
        errors(predictions),
    ]
    return Markup("<section class=labelled><h2>{}</h2><p>{}</p>{}</section>").format(
        heading, chosen, Markup("\n").join(parts)
    )


def matrix(labels: Sequence[str], matrix_CxC: np.ndarray) -> Markup:
    """Returns the confusion matrix as a table whose cells are darker the larger their share of the class is."""
    head = Markup().join(map(Markup("<th><div>{}</div></th>").format, labels))
    lines = []
    for place, (label, row) in enumerate(zip(labels, matrix_CxC.tolist(), strict=True)):
        cells = []
        for column, count in enumerate(row):
            kind, share = "right" if column == place else "wrong", count / max(1, sum(row))
            cells.append(Markup("<td class={} style='--p:{:.3f}'>{}</td>").format(kind, share, count or ""))
        lines.append(Markup("<tr><th>{}</th>{}</tr>").format(label, Markup().join(cells)))
    return Markup(
        "<h3>Confusion matrix</h3><p>Rows are the labels of the data, columns the predicted ones.</p>"
        "<div class=wide><table class=confusion><thead><tr><th></th>{}</tr></thead><tbody>{}</tbody></table></div>"
    ).format(head, Markup().join(lines))


def class_table(labels: Sequence[str], matrix_CxC: np.ndarray) -> Markup:
    """Returns precision, recall and F1 of each class, the worst first."""
    right_C, gold_C, predicted_C = np.diagonal(matrix_CxC), matrix_CxC.sum(1), matrix_CxC.sum(0)
    f1_C = 2 * right_C / np.maximum(gold_C + predicted_C, 1)
    rows = []
    for place in np.lexsort((np.arange(len(labels)), f1_C)):
        shares = right_C[place] / max(1, predicted_C[place]), right_C[place] / max(1, gold_C[place])
        values = [f"{share:.1%}" for share in shares]
        rows.append([labels[place], f"{gold_C[place]:,}", f"{predicted_C[place]:,}", *values, f"{f1_C[place]:.3f}"])
    cells = table(["label", "texts", "predicted", "precision", "recall", "F1"], rows)
    return Markup("<details><summary>Scores of each label</summary>{}</details>").format(cells)


def reliability(predictions: Predictions, temperature: float, is_own: bool) -> Markup:
    """Shows the calibration, without and with the temperature of the run."""
    measured = {"temperature 1": calibration(predictions.logits_NxC, predictions.gold_N, 1.0)}
    if temperature != 1.0:
        name = f"temperature {temperature:.2f}"
        measured[name] = calibration(predictions.logits_NxC, predictions.gold_N, temperature)
    rows = [[name, f"{of.expected_error:.1%}", number("loss", of.loss)] for name, of in measured.items()]
    note = ""
    if temperature != 1.0:
        note = "The temperature was chosen on these texts." if is_own else "The temperature was chosen on other texts."
    drawing = plots.reliability({name: of.bins for name, of in measured.items()})
    return Markup(
        "<h3>Calibration</h3><div class=grid><figure>{}</figure><div>{}<p class=note>Expected calibration error: how far "
        "the probability of the predicted label is from the share of right answers, over {} bins. A calibrated model is "
        "on the diagonal. {}</p></div></div>"
    ).format(drawing, table(["", "calibration error", "loss in nats"], rows), _NUM_BINS, note)


def errors(predictions: Predictions) -> Markup:
    """Lists the errors that the model was surest of."""
    shown, total = predictions.errors, int((predictions.gold_N != predictions.predicted_N).sum())
    if not total:
        return Markup("<h3>Errors</h3><p>None.</p>")
    rest = f" The {len(shown)} with the highest probabilities." if len(shown) < total else ""
    rows = [
        [
            Markup("<br>").join(error.texts),
            error.label,
            error.predicted,
            f"{error.probability:.0%}",
        ]
        for error in shown
    ]
    cells = table(["text", "label", "predicted", "probability"], rows)
    return Markup("<details open><summary>{:,} errors</summary><p>{}</p>{}</details>").format(total, rest, cells)

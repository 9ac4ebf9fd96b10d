"""The report of any run folder, from its files alone."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.run_folder.folder import write_config
from tools.lib import report_plots
from tools.lib.report_classification import calibration, confusion_matrix, read_predictions
from tools.lib.report_comparison import comparison, short_names
from tools.lib.report_html import quantity
from tools.lib.run_files import History, Unigram
from tools.report import metric_table, write_report


@pytest.fixture
def run(tmp_path, tiny_config):
    """A run folder with 20 steps, an evaluation and nothing else."""
    folder = tmp_path / "run <1>"
    folder.mkdir()
    write_config(folder, json.loads(tiny_config().to_json()))
    rows = []
    for step in range(1, 21):
        row = {
            "step": step,
            "loss": 5.0 / step,
            "mlm/loss": 5.0 / step,
            "mlm/accuracy": step / 40,
            "learning_rate": 1e-3,
        }
        rows.append(row | {"tokens_per_second": 1000.0 + step, "data_wait_seconds": 0.001})
    rows.append({"step": 20, "eval/loss": 0.7, "eval/mlm/loss": 0.7, "eval/mlm/accuracy": 0.4375})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def drawings(page: str) -> list[ElementTree.Element]:
    """The SVGs of a page, parsed."""
    pieces = [piece.split("</svg>")[0] for piece in page.split("<svg")[1:]]
    return [ElementTree.fromstring(f"<svg{piece}</svg>") for piece in pieces]


def test_a_plain_run(run):
    page = write_report(run).read_text()
    assert len(drawings(page)) == 5  # loss and accuracy of mlm, learning rate, throughput, waiting
    assert "run &lt;1&gt;" in page and "43.8%" in page
    assert "Stopped and resumed" not in page and "Filling masks" not in page
    assert "<script" not in page and "src=" not in page and "@import" not in page  # nothing from elsewhere
    assert write_report(run).read_text() == page  # the same every time


def test_where_the_time_went(run):
    lines = [{"began": 100.0, "step": 0}]
    lines += [{"time": 110.0, "step": 10, "seconds": {"starting": 2.0, "training": 8.0}}, {"began": 112.0, "step": 5}]
    lines += [{"time": 116.0, "step": 20, "seconds": {"training": 4.0}}]
    (run / "times.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(run).read_text()
    assert "Goodput 50.0%, 2 starts" in page and "lost 25.0%" in page and "down 12.5%" in page
    bar = next(drawing for drawing in drawings(page) if drawing.get("aria-label"))
    assert [float(rect.get("width")) for rect in bar] == [500.0, 0.0, 0.0, 0.0, 0.0, 125.0, 250.0, 125.0]
    (run / "times.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match=r"times.jsonl: damaged"):
        write_report(run)


def test_with_everything(run):
    (run / "unigram.json").write_text('{"accuracy": 0.0625, "loss": 6.25}')
    (run / "evaluation.json").write_text('{"20": {"loss": 0.7, "mlm/loss": 0.7, "mlm/accuracy": 0.4375}}')
    found = [{"token": "<b>", "probability": 0.5}]
    notes = {
        "stopped": 10,
        "replay": {"from": 8, "compared": 4, "identical": 4, "losses": {str(s): 5.0 / s for s in range(9, 13)}},
        "meshes": [[1, 4.0, 4.0000004], [2, 3.0, 3.0]],
        "fill_mask": [{"text": "a [MASK].", "tokens": found}],
        "task": {"title": "Which?", "note": "A task.", "rows": [["one", 0.25], ["two", 0.75]]},
        "predictions": [{"words": ["x", "&", "y"], "marked": [True, False, False], "predicted": [True, False, True]}],
    }
    (run / "notes.json").write_text(json.dumps(notes))
    page = write_report(run).read_text()
    assert len(drawings(page)) == 7
    assert "4 of 4 losses are identical to the last bit" in page
    for expected in ("6.2%", "6.250", "&lt;b&gt;", "<mark>[MASK]</mark>", "stopped and resumed"):
        assert expected in page, expected
    assert "<code>x</code> &amp; y" in page and "<code>x</code> &amp; <code>y</code>" in page and "✗" in page
    assert "by at most 1e-07" in page and "4.0000004" in page
    assert "mesh: data (all devices)" in page


def test_the_table_takes_its_rows_from_the_last_column():
    found = metric_table(None, {}, {5: {"mlm/accuracy": 0.5}}, Unigram(accuracy=0.1, loss=2.0))
    assert found.count("<tr>") == 2 and "10.0%" in found and "50.0%" in found


def test_smoothing_keeps_means():
    values = np.random.default_rng(0).normal(size=100)
    smooth = report_plots.running_mean(values, 9)
    np.testing.assert_allclose(smooth[50], values[46:55].mean(), rtol=1e-12)
    np.testing.assert_allclose(smooth[0], values[:5].mean(), rtol=1e-12)
    assert report_plots.curve(History([(1, {"loss": 2.0})]), "mlm/loss", "") == ""


def test_quantities():
    assert [quantity(value) for value in (1.5, 1234, 4.6e6, 2e9)] == ["1.5", "1.23 k", "4.6 M", "2 G"]


def test_nothing_to_report(tmp_path, run):
    with pytest.raises(UserError, match="not a run folder"):
        write_report(tmp_path)
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="no steps yet"):
        write_report(run)


# ----------------------------------------------------------------------------------------------------------------------
# Runs that classify
# ----------------------------------------------------------------------------------------------------------------------

LABELS = ["a", "b<i>", "c"]
LINES = [  # text, label, predicted, logits; the first two are right
    ("one", "a", "a", [4.0, 0.0, 0.0]),
    ("two", "b<i>", "b<i>", [0.0, 1.0, 0.5]),
    ("three & more", "a", "c", [0.0, 0.0, 3.0]),
    ("four", "c", "b<i>", [0.0, 1.0, 0.0]),
]


def write_predictions(folder, lines=LINES):
    path = folder / "predictions" / "validation.jsonl"
    path.parent.mkdir(parents=True)
    keys = ("texts", "label", "predicted", "logits")
    path.write_text("".join(json.dumps(dict(zip(keys, ([text], *rest), strict=True))) + "\n" for text, *rest in lines))
    return path


@pytest.fixture
def classifier(run):
    (run / "labels.json").write_text(json.dumps(LABELS))
    (run / "temperature.json").write_text("2.0")
    write_predictions(run)
    write_predictions(run / "evaluations" / "test", LINES[1:])
    write_predictions(run / "evaluations" / "step_5", LINES[:1])
    return run


def test_predictions_of_a_classifier(classifier):
    page = write_report(classifier).read_text()
    for expected in ("Held out in training: 2 of 4 texts right, 50.0%", "test: 1 of 3 texts right", "b&lt;i&gt;"):
        assert expected in page, expected
    assert "step_5" not in page, "another checkpoint than the default one"
    assert page.count("three &amp; more") == 2 and page.count("2 errors") == 2 and "temperature 2.00" in page
    assert len(drawings(page)) == 7
    surest = page.index("three &amp; more")
    assert surest < page.index("four"), "the surest first"
    (classifier / "labels.json").unlink()
    assert "errors" not in write_report(classifier).read_text()


def test_predictions_of_several_labels_are_not_shown(classifier):
    config = json.loads((classifier / "config.json").read_text())
    (classifier / "config.json").write_text(json.dumps(config | {"problem": "multi_label"}))
    line = {"texts": ["one"], "label": ["a", "c"], "predicted": ["a"], "logits": [4.0, 0.0, 0.0]}
    (classifier / "predictions" / "validation.jsonl").write_text(json.dumps(line) + "\n")
    assert "Held out in training" not in write_report(classifier).read_text()


def test_matrix_errors_and_calibration_by_hand(classifier):
    found = read_predictions(classifier / "predictions" / "validation.jsonl", LABELS, 2.0)
    expected = [[1, 0, 1], [0, 1, 0], [0, 1, 0]]
    np.testing.assert_array_equal(confusion_matrix(found.gold_N, found.predicted_N, 3), expected)
    first = found.errors[0]
    assert first.texts == ["three & more"] and first.number == 3
    assert first.probability == pytest.approx(np.exp(1.5) / (np.exp(1.5) + 2))

    # Two predictions at 0.8, one of them right, and two at 0.6, both right.
    logits = np.log([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.6, 0.4]])
    measured = calibration(logits, np.array([0, 1, 0, 0]), 1.0)
    np.testing.assert_allclose(measured.bins, [(0.6, 1.0, 2), (0.8, 0.5, 2)], rtol=1e-9)
    assert measured.expected_error == pytest.approx(0.5 * 0.4 + 0.5 * 0.3)
    assert measured.loss == pytest.approx(-(np.log(0.8) + np.log(0.2) + 2 * np.log(0.6)) / 4)
    hot = calibration(logits, np.array([0, 1, 0, 0]), 1e3)
    np.testing.assert_allclose([confidence for confidence, *_ in hot.bins], 0.5, atol=1e-3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("x", "d", "a", [0.0] * 3), "line 1 does not fit the labels"),
        (("x", "a", "a", [0.0] * 2), "line 1 does not fit the labels"),
        (("x", "a", 3, [0.0] * 3), "line 1 is damaged"),
        (None, "empty"),
    ],
)
def test_damaged_predictions(run, line, message):
    (run / "labels.json").write_text(json.dumps(LABELS))
    write_predictions(run, [line] if line else [])
    with pytest.raises(UserError, match=message):
        write_report(run)


# ----------------------------------------------------------------------------------------------------------------------
# Several runs
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def another(run, tiny_config):
    """A run of larger batches with a better accuracy, and without a learning rate in its metrics."""
    folder = run.parent / "other"
    folder.mkdir()
    write_config(folder, json.loads(tiny_config(**{"train.batch_size": 16}).to_json()))
    rows = [{"step": step, "loss": 4.0 / step, "mlm/loss": 4.0 / step} for step in range(1, 11)]
    rows.append({"step": 10, "eval/loss": 0.9, "eval/mlm/loss": 0.9, "eval/mlm/accuracy": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_two_runs_on_one_page(run, another):
    page = comparison([run, another])
    assert "run &lt;1&gt;" in page and len(drawings(page)) == 5
    assert "<b>50.0%</b>" in page and "<b>43.8%</b>" not in page, "the highest accuracy"
    assert "<b>0.700</b>" in page and "<b>0.900</b>" not in page, "the lowest loss"
    settings = page[page.index("Settings that differ") :]
    assert "train.batch_size" in settings and ">8<" in settings and ">16<" in settings
    assert "train.num_steps" not in settings and "model." not in settings
    assert "million tokens" in page, "steps of batches of different sizes are not comparable"
    assert "<script" not in page and comparison([run, another]) == page


def test_equal_batches_are_compared_by_steps(run, another):
    (another / "config.json").write_text((run / "config.json").read_text())
    page = comparison([run, another])
    assert "million tokens" not in page and page.index("None.") > page.index("Settings that differ")


def test_names_are_as_short_as_they_can_be(tmp_path):
    paths = [tmp_path / name for name in ("x/seed_0/run", "x/seed_1/run")]
    assert short_names(paths) == ["seed_0/run", "seed_1/run"]
    assert short_names([tmp_path / "x", tmp_path / "x" / "y"]) == ["x", "x/y"]


def test_runs_that_cannot_be_compared(run, tmp_path):
    with pytest.raises(UserError, match="the same run twice"):
        comparison([run, run.parent / "." / run.name])
    with pytest.raises(UserError, match="at most 8"):
        comparison([tmp_path / str(number) for number in range(9)])
    with pytest.raises(UserError, match="not a run folder"):
        comparison([run, tmp_path])

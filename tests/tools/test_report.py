"""The report of any run folder, from its files alone."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.run_folder.folder import write_config
from tools.lib import report_plots
from tools.lib.run_files import History, Unigram
from tools.report import metric_table, quantity, write_report


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
    found = metric_table({}, {5: {"mlm/accuracy": 0.5}}, Unigram(accuracy=0.1, loss=2.0))
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

"""Reports, sheets and model cards of folders that strangers made: what is in their files is shown as text, or refused."""

import ast
import csv
import io
import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

import bert_jax
from bert_jax.conversion.model_card import model_card
from bert_jax.run_folder.folder import read_config
from tests import running
from tests.hostile.limits import accepted_or_refused, assert_refused, damaged_bytes, limited, mutated_json, refused
from tools import experiment_sheet, linear_models, quickstart
from tools.experiment_sheet import Cell
from tools.lib import quickstart_summary, report_plots, sheet_page
from tools.lib.report_comparison import comparison
from tools.lib.run_files import History
from tools.report import write_report

FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=200)
HTML = [
    "<img src=x onerror=alert(1)>",
    "\" onmouseover='alert(1)",
    "</style></title></svg></script><script>alert(1)</script>",
    "<!-- &lt; ]]> <?x {} {0} $\\frac$ %s",
    "javascript:alert(1)\x00\x1b[31m\n\r\u2028",
]
MARKDOWN = [
    "<img src=x onerror=alert(1)>",
    "[a](javascript:alert(1)) ![b](http://x.example/y.png) [c]: http://x.example",
    "`code` ``` **bold** __bold__ *it* _it_ ~~gone~~ $x$ &lt; \\",
    "a | b |\n|---|---|\n# head\n\n- item\n\n---\n> quote\n1. one\r\n\tcode",
    "https://x.example www.x.example <https://x.example> a@x.example \x1b[31m",
]
CONFIG: dict[str, Any] = {
    "task": "pretraining",
    "objectives": ["mlm"],
    "model": {"num_layers": 2, "hidden_size": 4, "num_heads": 2, "vocab_size": 9, "kind": "bert"},
    "train": {"num_steps": 5, "batch_size": 2, "seed": 0, "ema_decay": 0.0},
    "data": {"sequence_length": 8, "corpus": "c", "train": "t"},
    "parallel": {"data": -1},
    "optimizer": {"name": "adamw", "learning_rate": 0.1, "schedule": "linear"},
    "checkpoint": {"best_metric": "eval/loss", "prefer_best": False},
    "init_from": "",
}
UNIGRAM = {"accuracy": 0.25, "loss": 3.0}
EVALUATION = {"2": {"loss": 0.5, "mlm/accuracy": 0.5}}
NOTES = {
    "meshes": [[1, 4.0, 4.5]],
    "stopped": 1,
    "replay": {"from": 1, "compared": 1, "identical": 1, "losses": {"1": 4.0, "2": 3.0}},
    "fill_mask": [{"text": "a [MASK]", "tokens": [{"token": "b", "probability": 0.5}]}],
    "task": {"title": "T", "note": "N", "rows": [["one", 0.5], ["two", 0.75]]},
    "predictions": [{"words": ["x", "y"], "marked": [True, False], "predicted": [True, True]}],
    "seconds": {"stage": 1.0},
}
ROW = {"step": 1, "loss": 4.0, "learning_rate": 0.1}
MLM = {"mlm/loss": 4.0, "mlm/accuracy": 0.5}
HELD_OUT = {"step": 2, "eval/loss": 0.5, "eval/mlm/loss": 0.5, "eval/mlm/accuracy": 0.5}


def write_run(folder: Path, rows: list[dict], **files: Any) -> Path:
    """A run folder of metric rows and files of JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, content in ({"config": CONFIG} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def marked(value: Any, text: str, with_keys: bool = False) -> Any:
    """JSON with `text` at the end of every string and, where wanted, a key of it more in every object."""
    if isinstance(value, str):
        return value + text
    if isinstance(value, list):
        return [marked(entry, text, with_keys) for entry in value]
    if isinstance(value, dict):
        own = {name: marked(entry, text, with_keys) for name, entry in value.items()}
        return own | {text: 3} if with_keys else own
    return value


class Structure(HTMLParser):
    """The elements of a page with the names of their attributes, its text, and the values of `style`."""

    def __init__(self, page: str):
        super().__init__()
        self.elements, self.drawn, self.text, self.styles = [], set(), [], set()
        self._in_svg = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self._in_svg |= tag == "svg"
        names = (tag, *(name for name, _ in attributes))
        self.drawn.add(names) if self._in_svg else self.elements.append(names)  # the ticks of a plot may be more
        if not self._in_svg:
            self.styles |= {value for name, value in attributes if name == "style"}
        assert not any(name.startswith("on") or "javascript:" in str(value) for name, value in attributes)

    def handle_endtag(self, tag):
        self._in_svg &= tag != "svg"
        self.elements += [] if self._in_svg else [(f"/{tag}",)]

    def handle_comment(self, data):
        self.elements += [] if self._in_svg else [("comment",)]

    def handle_data(self, data):
        self.text.append(data)


def assert_same_structure(page: str, harmless: str) -> None:
    seen, expected = Structure(page), Structure(harmless)
    assert seen.elements == expected.elements and seen.styles == expected.styles
    assert seen.drawn == expected.drawn


# ----------------------------------------------------------------------------------------------------------------------
# Injections
# ----------------------------------------------------------------------------------------------------------------------


def page_of_run(folder: Path, text: str) -> str:
    """The report of a run that has `text` in every string and name that its files may have."""
    name = re.sub(r"[/\x00]", "", text)
    rows = [
        {"step": step} | {f"{prefix}{name}/{metric}": 0.5 for metric in ("loss", "accuracy")} | {f"{prefix}loss": 1.0}
        for prefix in ("", "eval/")
        for step in (1, 2)
    ]
    notes = marked(NOTES, text)
    notes["seconds"] = {text: 1.0}
    files = {"config": marked(CONFIG, text, with_keys=True), "unigram": UNIGRAM, "notes": notes}
    run = write_run(folder / f"run {name}", rows, **files, evaluation={"2": {text: 0.5, f"{text}/accuracy": 0.5}})
    (run / "labels.json").write_text(json.dumps(labels := [f"a{text}", f"b{text}"]))
    line = {"texts": [text, text], "label": labels[0], "predicted": labels[1], "logits": [0.0, 1.0]}
    for place in (run, run / "evaluations" / f"test {name}"):
        (place / "predictions").mkdir(parents=True)
        (place / "predictions" / "validation.jsonl").write_text(json.dumps(line) + "\n")
    write_run(run.parent / f"other {name}", rows, config=marked(CONFIG, f"{text} 2", with_keys=True))
    return write_report(run).read_text() + comparison([run, run.parent / f"other {name}"])


@pytest.fixture(scope="module")
def harmless_page(tmp_path_factory) -> str:
    return page_of_run(tmp_path_factory.mktemp("harmless"), "x")


@pytest.mark.parametrize("text", HTML)
def test_nothing_in_the_files_of_a_run_is_html(text, tmp_path, harmless_page):
    page = page_of_run(tmp_path, text)
    assert_same_structure(page, harmless_page)
    visible = "".join(Structure(page).text)
    assert visible.count(text.split("\x00")[0]) > 10, "it is shown, as text"
    assert "\x1b" not in page[page.index("<title") : page.index("</title>")]


@pytest.mark.parametrize("text", HTML)
def test_nothing_in_a_sheet_is_html(text):
    def page(text: str) -> str:
        results = [
            sheet_page.Result(f"T{text}", f"E{text}", f"W{text}", seed, f"s{text}", 1.0, {f"s{text}": score}, 60.0)
            for seed, score in enumerate((0.25, 0.5))
        ]
        return sheet_page.page(results)

    assert_same_structure(page(text), page("x"))
    assert "T" + text.split("\x00")[0] in "".join(Structure(page(text)).text)


def test_markup_is_made_of_literals_only():
    """So a value can come into a page by `format` and `join` alone, which escape it; what is excepted is our own."""
    excepted = {
        "report_plots.py": 1,
        "report_html.py": 1,
        "report.py": 1,
    }  # matplotlib's SVG; report.css; what rich makes of text
    for path in running.ROOT.glob("tools/**/*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        made = [call.args for call in calls if getattr(call.func, "id", "") == "Markup" and call.args]
        others = [
            argument
            for (argument,) in made
            for part in ([argument.body, argument.orelse] if isinstance(argument, ast.IfExp) else [argument])
            if not isinstance(part, ast.Constant)
        ]
        assert len(others) == excepted.get(path.name, 0), path


@pytest.fixture(scope="module")
def encoder(tiny_bert):
    return bert_jax.load(tiny_bert)


def card_of_run(folder: Path, text: str, encoder: Any, tiny_bert: Path) -> str:
    config = marked(read_config(tiny_bert), text, with_keys=True)
    config["data"] |= {"corpus": f"c{text}", "train": f"t{text}"}
    config["objectives"], config["init_from"] = [f"o{text}"], f"i{text}"
    name = re.sub(r"[/\x00]", "", text)
    run = write_run(folder / f"run {name}", [{"step": 1, f"eval/m{text}": 0.5}], config=config)
    return model_card(run, encoder, "BertModel", 10)


@pytest.mark.parametrize("text", MARKDOWN)
def test_nothing_in_a_run_is_markdown(text, tmp_path, encoder, tiny_bert):
    card, harmless = (card_of_run(tmp_path / of, value, encoder, tiny_bert) for of, value in (("a", text), ("b", "x")))
    assert_same_structure(rendered(card), rendered(harmless))
    assert card.startswith("---\nlibrary_name: transformers\n---\n\n# run ")
    assert card.count("\n") == harmless.count("\n") and all(line.isprintable() for line in card.splitlines())
    assert "www." not in card and not re.search(r"(?<!\\)://", card), "GitHub makes links of them"
    results = [sheet_page.Result(*[f"a{text}"] * 3, 0, f"s{text}", 1.0, {f"s{text}": 0.5}, 60.0)]
    sheet = sheet_page.markdown(results)
    assert len(re.findall("<td>", rendered(sheet))) == 2 and sheet.count("\n") == 5
    (line,) = csv.DictReader(io.StringIO(sheet_page.comma_separated(results)))
    assert line["task"] == f"a{text}".replace("\r\n", "\n") or line["task"] == f"a{text}"


def rendered(text: str) -> str:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text.removeprefix("---\n"))


def test_names_are_printed_as_they_are(tmp_path):
    name = "[red]x[/red] [/] :smile: \x1b[31m"
    run = write_run(tmp_path / "[bold]" / "pretrain", [HELD_OUT], notes=marked(NOTES, name), unigram=UNIGRAM)
    out = io.StringIO()
    quickstart_summary.show_summary(run.parent, Console(file=out, width=300))
    assert "one[red]x[/red] [/] :smile: \\x1b[31m" in out.getvalue() and "\x1b" not in out.getvalue()
    assert "[bold]/pretrain/report.html" in out.getvalue()


# ----------------------------------------------------------------------------------------------------------------------
# Damage
# ----------------------------------------------------------------------------------------------------------------------


@FEW
@given(text=mutated_json(NOTES))
def test_any_notes(text, tmp_path):
    run = write_run(tmp_path / "run", [ROW])
    (run / "notes.json").write_text(text)
    accepted_or_refused(lambda: write_report(run))


@MANY
@given(text=mutated_json(EVALUATION))
def test_any_evaluation(text, tmp_path):
    run = write_run(tmp_path / "run", [ROW | {"learning_rate": None}])
    (run / "evaluation.json").write_text(text)
    accepted_or_refused(lambda: write_report(run))


@MANY
@given(text=mutated_json(CONFIG))
def test_any_config(text, tmp_path, encoder):
    run = write_run(tmp_path / "run", [{"step": 1, "loss": 4.0}, HELD_OUT | {"eval/mlm/loss": None}])
    (run / "config.json").write_text(text)
    accepted_or_refused(lambda: write_report(run))
    accepted_or_refused(lambda: model_card(run, encoder, "BertModel", 10))


PREDICTION = {"texts": ["a", "b"], "label": "x", "predicted": "y", "logits": [0.0, -1.5]}


@FEW
@given(text=mutated_json(PREDICTION))
@pytest.mark.slow
def test_any_prediction(text, tmp_path):
    run = write_run(tmp_path / "run", [ROW | MLM], labels=["x", "y"])
    (run / "predictions").mkdir(exist_ok=True)
    (run / "predictions" / "validation.jsonl").write_text(f"{json.dumps(PREDICTION)}\n{text}\n")
    accepted_or_refused(lambda: write_report(run))


@FEW
@given(text=mutated_json(CONFIG), row=mutated_json(ROW | MLM | HELD_OUT), evaluation=mutated_json(EVALUATION))
def test_any_runs_to_compare(text, row, evaluation, tmp_path):
    runs = [write_run(tmp_path / name, [ROW | MLM | HELD_OUT]) for name in ("one", "other")]
    (runs[1] / "config.json").write_text(text)
    (runs[0] / "metrics.jsonl").write_text(f"{row}\n")
    (runs[0] / "evaluations" / "test").mkdir(parents=True, exist_ok=True)
    (runs[0] / "evaluations" / "test" / "evaluation.json").write_text(evaluation)
    accepted_or_refused(lambda: comparison(runs))


@FEW
@given(text=mutated_json(UNIGRAM))
def test_any_unigrams(text, tmp_path):
    run = write_run(tmp_path / "run", [{"step": 1, "loss": 4.0} | MLM])
    (run / "unigram.json").write_text(text)
    accepted_or_refused(lambda: write_report(run))


@settings(FEW, max_examples=25)
@given(line=st.one_of(mutated_json(ROW | MLM), mutated_json(HELD_OUT)))
def test_any_row(line, tmp_path, encoder):
    run = write_run(tmp_path / "run", [ROW | MLM, HELD_OUT])
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line + "\n" + json.dumps(HELD_OUT) + "\n")
    accepted_or_refused(lambda: write_report(run))
    accepted_or_refused(lambda: model_card(run, encoder, "BertModel", 10))
    accepted_or_refused(lambda: quickstart_summary.held_out_f1(run))


CELL = Cell("e", "w", "T", 0, "features", "c", {"a.b": 1}, "f1", 1.0)


@FEW
@given(text=mutated_json({"scores": {"f1": 0.5, "exact": None}, "seconds": 2.0}))
def test_any_result(text, tmp_path):
    folder = CELL.folder(tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(text)
    results = accepted_or_refused(lambda: experiment_sheet.results([CELL], tmp_path))
    if results:
        sheet_page.write(tmp_path, results)


@MANY
@given(text=mutated_json({"f1": 0.5}), experiment=mutated_json(CELL.experiment))
def test_any_scores(text, experiment, tmp_path):
    (tmp_path / "scores.json").write_text(text)
    accepted_or_refused(lambda: quickstart_summary.held_out_f1(tmp_path))
    scores = accepted_or_refused(lambda: experiment_sheet.scores_of(CELL, tmp_path))
    if scores is not None:
        accepted_or_refused(lambda: experiment_sheet.check_score(CELL, scores, tmp_path))
    (tmp_path / "experiment.json").write_text(experiment)
    accepted_or_refused(lambda: experiment_sheet.check_same_experiment(CELL, tmp_path))


@MANY
@given(data=st.data())
def test_any_state_of_a_quickstart(data, tmp_path):
    options = quickstart.Options("mlm", [], [], [], 0)
    state = quickstart_summary.State(options._asdict(), {"Predict": 1.0}, [(1, 2.0, 2.0)], 5, 4, 1, 1)
    text = data.draw(mutated_json(fields_of(state)))
    (tmp_path / "quickstart.json").write_text(text)
    accepted_or_refused(lambda: quickstart.Quickstart(tmp_path, options))


def fields_of(state: quickstart_summary.State) -> dict[str, Any]:
    return {name: getattr(state, name) for name in state.__struct_fields__} | {"meshes": [[1, 2.0, 2.0]]}


@MANY
@given(data=st.data())
def test_any_features(data, tmp_path):
    good = io.BytesIO()
    np.savez(good, what=np.array("w"), train=np.zeros((2, 3), np.float32), held_out=np.ones((1, 3), np.float32))
    (tmp_path / "features.npz").write_bytes(data.draw(damaged_bytes(good.getvalue())))
    accepted_or_refused(lambda: linear_models.read_features(tmp_path / "features.npz", "w"))


@pytest.mark.parametrize(
    "rows", ["{}", '{"loss": 1}', '{"step": null}', '{"step": -1}', '{"step": 1e300}', '{"step": "1"}', '{"\xff": 1}']
)
def test_damaged_rows_are_named(rows, tmp_path):
    run = write_run(tmp_path / "run", [ROW])
    (run / "metrics.jsonl").write_bytes(json.dumps(ROW).encode() + b"\n" + rows.encode("latin-1") + b"\n")
    with refused("metrics.jsonl: damaged", "; remove"):
        write_report(run)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "notes.json", "unigram.json", "evaluation.json"])
def test_pipes_and_folders_are_not_waited_for(name, tmp_path):
    run = write_run(tmp_path / "run", [ROW])
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    with refused(name, "not a regular file"):
        write_report(run)
    (run / name).unlink()
    (run / name).mkdir()
    with refused(name, "a folder"):
        write_report(run)


def test_numbers_that_are_not_finite_are_told(tmp_path):
    run = write_run(tmp_path / "run", [ROW, ROW | {"loss": None}], evaluation={"2": {"loss": None, "f1": 0.5}})
    assert "<td>not finite</td>" in write_report(run).read_text()


# ----------------------------------------------------------------------------------------------------------------------
# Size
# ----------------------------------------------------------------------------------------------------------------------


def test_a_long_run_takes_little_memory_and_a_small_page():
    rows = ((step, {"loss": 1.0 / step, "eval/loss": 2.0 / step}) for step in range(1, 300_001))
    history = History(rows)
    steps, values = history.points("loss")
    assert 10_000 < len(steps) < 1 << 16 and steps[0] == 1 and steps[-1] > 299_000
    np.testing.assert_array_equal(values, 1.0 / steps)
    assert len(report_plots.curve(history, "loss", "loss")) < 100_000


def test_no_run_has_so_many_metrics(tmp_path):
    run = write_run(tmp_path / "run", [ROW | {f"m{number}/loss": 1.0 for number in range(2000)}])
    with refused("more than 1,000 metrics"):
        write_report(run)
    write_run(run, [ROW | {f"m{number}/loss": 1.0 for number in range(30)}])
    assert write_report(run).read_text().count("<svg") < 20


# ----------------------------------------------------------------------------------------------------------------------
# A full disk
# ----------------------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_good_page(tmp_path):
    run = write_run(tmp_path / "run", [ROW, ROW | {"step": 2}])
    before = write_report(run).read_bytes()
    assert len(before) > 8192
    program = [sys.executable, "tools/report.py", f"--workdir={run}"]
    # Python would leave compiled modules that are cut off.
    shell = 'ulimit -f 8; export PYTHONDONTWRITEBYTECODE=1; exec "$@"'
    ended = limited(["bash", "-c", shell, "-", *program], megabytes=8000, seconds=60)
    assert_refused(ended, f"{run}/report.html: File too large")
    assert (run / "report.html").read_bytes() == before
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "metrics.jsonl", "report.html"]


def test_a_folder_in_the_place_of_a_page(tmp_path):
    run = write_run(tmp_path / "run", [ROW])
    (run / "report.html").mkdir()
    with refused("report.html: is a folder"):
        write_report(run)


def test_a_sheet_is_whole(tmp_path, monkeypatch):
    """All of a sheet that can be wrong is found before a file of it is replaced."""
    result = sheet_page.Result("T", "e", "w", 0, "f1", 1.0, {"f1": 0.5}, None)
    sheet_page.write(tmp_path, [result])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyError):
        sheet_page.write(tmp_path, [result._replace(score="other")])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

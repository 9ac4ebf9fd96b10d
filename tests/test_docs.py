"""The docs are true: a run with the objective of docs/architecture.md, from training to an export; links, files and options."""

import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

import bert_jax
import bert_jax.objectives
from bert_jax import run
from bert_jax.config import RENAMED, to_dict
from bert_jax.conversion import convert as conversion
from bert_jax.errors import UserError
from bert_jax.run_folder.folder import flattened
from bert_jax.tasks import glue, pretraining, qa, text, tokens
from bert_jax.trained import run_evaluation
from tests.running import ROOT, checkpoints, losses, rows

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("configs/**/*.py"))]
PAGES += sorted(ROOT.glob("examples/*/README.md"))
TASKS = (pretraining, text, glue, tokens, qa)
OTHERS = ("examples/roberta/README.glue.md",)  # files of other repositories
OF_SHEETS = ("encoders", "data", "only")  # options of configs/sheets/
FILE = re.compile(r"(?<![\w./-])(?:[a-z_]\w*/)+[a-z_]\w*\.(?:py|sh|sbatch|md)\b")
SECTIONS = "model|train|data|optimizer|parallel|checkpoint|options"
OPTION = re.compile(rf"--config\.([a-z][\w.]*)=|`((?:{SECTIONS})\.(?!jsonl)[a-z_.]+)[`=]")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_exist(page):
    text = re.sub(r"```python.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text) if page.suffix == ".md" else ():
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page}: {target}"
        headings = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE) if anchor else ()
        anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in anchors, f"{page}: {target}"
    for name in FILE.findall(text):
        places = (ROOT, ROOT / "bert_jax", ROOT / "bert_jax" / "train")
        assert any((place / name).exists() for place in places) or name in OTHERS, f"{page}: no file {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_exist(page):
    options = {name for task in TASKS for name in flattened(to_dict(task.Config()))}
    options |= {*RENAMED, *OF_SHEETS, "options.count_masks."}  # the last one is that of the documented objective
    for name in map("".join, OPTION.findall(page.read_text())):
        assert name in options, f"{page}: no task has an option {name}"


@pytest.fixture(scope="module")
def objective(tmp_path_factory) -> Iterator[None]:
    """The file of the documented objective, where objectives are looked for."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    folder = tmp_path_factory.mktemp("objectives")
    (folder / "count_masks.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bert_jax.objectives, "__path__", [*bert_jax.objectives.__path__, str(folder)])
        patch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)
        yield
    sys.modules.pop("bert_jax.objectives.count_masks", None)


@pytest.fixture(scope="module")
def trained(objective, tiny_config, tmp_path_factory) -> tuple[ConfigDict, Path]:
    """A run that was stopped after two of its four steps and resumed."""
    workdir = tmp_path_factory.mktemp("documented") / "run"
    config = tiny_config(objectives=("mlm", "count_masks"), **{"train.num_steps": 2})
    run.run_training(config, workdir)
    with config.unlocked():
        config.train.num_steps = 4
    run.run_training(config, workdir)
    return config, workdir


def test_it_trains_and_goes_on(trained):
    _, workdir = trained
    assert list(losses(workdir)) == [1, 2, 3, 4] and checkpoints(workdir) == [2, 4]
    starts = (workdir / "starts.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in starts] == [0, 2]
    for row in (row for row in rows(workdir) if "loss" in row):
        assert row["count_masks/loss"] > 0
        np.testing.assert_allclose(row["loss"], row["mlm/loss"] + row["count_masks/loss"], rtol=1e-6)


def test_it_is_evaluated(trained, tmp_path):
    """The same numbers as in training."""
    config, workdir = trained
    (found,) = run_evaluation(config, workdir, [], tmp_path).values()
    last = [row for row in rows(workdir) if "eval/loss" in row][-1]
    assert found["count_masks/loss"] == pytest.approx(last["eval/count_masks/loss"], rel=1e-5)


def test_it_predicts(trained):
    (answer,) = bert_jax.Predictor.load(trained[1]).predict(["the old [MASK]"])
    assert len(answer["masks"][0]) == 5


def test_it_is_loaded(trained):
    """With the logits of its head: a dense layer over the pooled state."""
    encoder = bert_jax.load(trained[1])
    assert len(repr(encoder)) < 1000, "parameters are shown"
    output = encoder(np.array([[5, 6, 7, 8]]))
    assert output.logits.keys() == {"mlm", "count_masks"}
    dense: Any = encoder.params["heads"]["count_masks"]["dense"]
    expected = np.asarray(output.pooled) @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    np.testing.assert_allclose(output.logits["count_masks"], expected, atol=1e-5)


def test_it_is_exported_without_its_head(trained, tmp_path, caplog):
    _, workdir = trained
    with caplog.at_level(logging.INFO):
        conversion.export_run(workdir, tmp_path / "exported")
    assert "head count_masks is not exported: BertForMaskedLM does not have it" in caplog.messages
    ids = np.array([[5, 6, 7, 8]])
    ours, theirs = bert_jax.load(workdir)(ids), bert_jax.load(tmp_path / "exported")(ids)
    size = theirs.logits["mlm"].shape[-1]
    np.testing.assert_allclose(ours.logits["mlm"][..., :size], theirs.logits["mlm"], atol=1e-4)
    with pytest.raises(UserError, match="heads count_masks: no class of bert has all of them"):
        conversion.export_run(workdir, tmp_path / "other", wanted_heads=("count_masks",))


def test_a_run_whose_objective_is_gone_says_so(trained, monkeypatch):
    monkeypatch.setattr(bert_jax.objectives, "__path__", bert_jax.objectives.__path__[:1])
    with pytest.raises(UserError, match=r"config\.options\.count_masks: no such option"):
        bert_jax.load(trained[1])

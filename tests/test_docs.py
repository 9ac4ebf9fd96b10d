"""What the documents show works: the objective of docs/architecture.md trains."""

import re
import sys
from pathlib import Path

import numpy as np

import bert_jax.objectives
from bert_jax.run import run_training
from tests.running import ROOT, losses, rows


def test_example_objective_trains(tmp_path, tiny_config, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    folder = tmp_path / "objectives"
    folder.mkdir()
    (folder / "count_masks.py").write_text(code)
    monkeypatch.setattr(bert_jax.objectives, "__path__", [*bert_jax.objectives.__path__, str(folder)])
    workdir = Path(tmp_path / "run")
    try:
        run_training(tiny_config(objectives=("mlm", "count_masks")), workdir)
    finally:
        sys.modules.pop("bert_jax.objectives.count_masks", None)
    last = rows(workdir)[-2]
    assert np.isfinite(list(losses(workdir).values())).all()
    assert last["count_masks/loss"] > 0
    np.testing.assert_allclose(last["loss"], last["mlm/loss"] + last["count_masks/loss"], rtol=1e-6)

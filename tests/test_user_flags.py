"""One job as users run it: without the XLA, device and cache flags that tests set, and with its own home folder."""

import json
import os
import subprocess

import pytest

from tests.running import ROOT, TIMEOUT, command, config_flag, losses
from tests.train.test_step import steps

OURS = ("XLA_", "JAX_", "BERT_JAX_")


def as_a_user(arguments: list[str], home) -> str:
    """What a command prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(arguments, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_job_with_users_own_flags(tiny_config, start_run, tmp_path):
    """XLA's optimizations change no loss by more than rounding."""
    settings = {"train.num_steps": 6, "objectives": ("mlm",), "model.num_layers": 1, "model.dropout": 0.1}
    flag = config_flag(tiny_config(**settings, **{"train.compilation_cache": True}), tmp_path / "config")
    workdir = tmp_path / "run"
    as_a_user(command("pretrain", flag, f"--workdir={workdir}"), tmp_path)
    assert list((tmp_path / ".cache" / "bert_jax" / "compiled").iterdir()), "no compiled program is kept"
    _, expected = steps(start_run(tiny_config(**settings), num_devices=1, fresh=True), 6)
    found = losses(workdir)
    assert len(found) == 6
    for row, loss in zip(expected, found.values(), strict=True):
        assert abs(row["loss"] - loss) < 1e-4
    (answer,) = as_a_user(command("predict", f"--workdir={workdir}", "--text=the [MASK] river"), tmp_path).splitlines()
    (mask,) = json.loads(answer)["masks"]
    assert len(mask) == 5 and 1 > sum(token["probability"] for token in mask) > 0

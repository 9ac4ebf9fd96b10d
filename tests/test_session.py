"""A session of tests that cannot begin says why."""

import subprocess
import sys

from tests.running import ROOT, environment


def test_an_option_that_xla_does_not_know():
    """It ends every process that starts jax; the workers of xdist would do so silently."""
    variables = environment(1) | {"XLA_FLAGS": "--xla_no_such_option=1"}
    command = [sys.executable, "-m", "pytest", "-n", "1", "tests/test_session.py"]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "Unknown flag in XLA_FLAGS: --xla_no_such_option=1" in done.stderr
    assert "node down" not in done.stdout

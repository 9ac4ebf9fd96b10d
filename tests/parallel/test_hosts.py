"""What a process does before it touches jax."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESIDENT_AFTER_FREEING = """
import os
import jax, numpy as np
from bert_jax.parallel import hosts

hosts.start("")
block = np.ones(256 << 20, np.uint8)
del block
pages = int(open("/proc/self/statm").read().split()[1])
print(pages * os.sysconf("SC_PAGESIZE") >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_where_the_cpu_computes_freed_memory_stays_for_the_next_step(tmp_path):
    assert resident_after_freeing(JAX_PLATFORMS="cpu") > 256
    plugin = tmp_path / "fake-1.0.dist-info"  # as the packages of accelerators have it
    plugin.mkdir()
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: fake\nVersion: 1.0\n")
    (plugin / "entry_points.txt").write_text("[jax_plugins]\nfake = fake\n")
    given_back = resident_after_freeing(JAX_PLATFORMS="", PYTHONPATH=str(tmp_path))
    assert given_back < resident_after_freeing(JAX_PLATFORMS="cpu", PYTHONPATH=str(tmp_path)) - 200


def resident_after_freeing(**environment: str) -> int:
    """MiB that a process holds once it has freed 256."""
    command = [sys.executable, "-c", RESIDENT_AFTER_FREEING]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True)
    return int(done.stdout)

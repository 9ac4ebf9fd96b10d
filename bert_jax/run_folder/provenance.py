"""Records where and how a run was started, so that it can be reproduced."""

import json
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from bert_jax.run_folder.folder import STARTS

# Packages on which results may depend.
PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy", "scikit-learn", "seqeval", "tokenizers",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """Returns the command, the working directory, versions, the commit of the code and the devices of the mesh."""
    mesh = jax.sharding.get_mesh()
    return {
        "command": shlex.join(sys.orig_argv),
        "folder": str(Path.cwd()),
        "code": commit(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "environment": {name: os.environ[name] for name in ("XLA_FLAGS", "JAX_PLATFORMS") if name in os.environ},
    }


def commit() -> str:
    """Returns the git commit of this code, with '+changes' if files differ; '' if it is not in a repository."""
    file = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(file))
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def write_start(workdir: Path, step: int) -> None:
    """Appends this start of a run, at `step`, to starts.jsonl."""
    with (workdir / STARTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step} | describe()) + "\n")

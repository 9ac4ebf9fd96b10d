"""Records where and how a run was started, so that it can be reproduced."""

import json
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import jax

from bert_jax.errors import UserError
from bert_jax.files import decode_json, read_lines
from bert_jax.run_folder.folder import STARTS

# Packages on which results may depend.
PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy", "scikit-learn", "seqeval", "tokenizers",
)  # fmt: skip


class Source(TypedDict):
    """A checkpoint from which a tool made a run, or an imported model."""

    run: str
    step: NotRequired[int]
    weight: NotRequired[float]


class Origin(TypedDict):
    """What a tool made a run of."""

    tool: str
    sources: list[Source]


class Start(TypedDict, total=False):
    """Entries of a line of starts.jsonl that are read."""

    step: int
    origin: Origin


def describe() -> dict[str, Any]:
    """Returns the command, the working directory, versions, the commit of the code and the devices of the mesh, if any."""
    mesh = jax.sharding.get_mesh()
    devices = jax.devices()[:1] if mesh.empty else mesh.devices.flatten()  # tools that do not train have no mesh
    return {
        "command": shlex.join(sys.orig_argv),
        "folder": str(Path.cwd()),
        "code": commit(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
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


def write_start(workdir: Path, step: int, origin: Origin | None = None) -> None:
    """Appends this start of a run, at `step`, to starts.jsonl, with what a tool made the run of (see `read_origin`)."""
    made_of: dict[str, Any] = {"origin": origin} if origin else {}
    with (workdir / STARTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step} | made_of | describe()) + "\n")


def read_starts(workdir: Path) -> list[tuple[bytes, Start]]:
    """Returns the lines of starts.jsonl, each with its contents. Raises UserError if one is damaged."""
    path = workdir / STARTS
    lines = [line for line in read_lines(path) if line.endswith(b"}\n")] if path.exists() else []
    try:
        return [(line, decode_json(line, Start)) for line in lines]
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); restore it") from None


def read_origin(workdir: Path) -> Origin | None:
    """Returns what a tool last made the run of; None if it began by itself. Raises UserError as `read_starts`."""
    origins = [start.get("origin") for _, start in read_starts(workdir)]
    return next(filter(None, reversed(origins)), None)

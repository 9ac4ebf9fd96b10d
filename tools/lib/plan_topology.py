"""Parses the devices that a plan is for: `v5e:4x4`, `h100:8`, `cpu:2`."""

import importlib.metadata
import importlib.util
import math
import re
from typing import NamedTuple

import jax

from bert_jax.errors import UserError
from bert_jax.parallel.chips import CHIPS, Chip

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
SLICES = {
    "v5e": _FLAT,
    "v6e": _FLAT,
    "v5p": _CUBES,
}  # docs.cloud.google.com/tpu/docs/v5e, /v6e and /v5p, "configurations"
GPUS = [name for name, chip in CHIPS.items() if chip.is_gpu]
MOST_DEVICES = 1024  # of GPUs and CPUs, which are compiled for as virtual devices


class Topology(NamedTuple):
    """Devices of one kind and how they are connected."""

    name: str
    platform: str  # 'tpu', 'gpu' or 'cpu'
    devices: int
    chip: Chip | None  # None: the CPU of this machine, which is measured

    @classmethod
    def parse(cls, name: str) -> "Topology":
        """Raises UserError for an unknown one, with those that there are."""
        kind, _, shape = name.partition(":")
        if kind in SLICES and shape in SLICES[kind]:
            return cls(name, "tpu", math.prod(map(int, shape.split("x"))), CHIPS[kind])
        if (kind in GPUS or kind == "cpu") and re.fullmatch("[1-9][0-9]*", shape) and int(shape) <= MOST_DEVICES:
            devices, chip = int(shape), CHIPS.get(kind)
            if chip and devices > chip.connected and devices % chip.connected:
                raise UserError(f"--topology={name}: above {chip.connected}, use a multiple of {chip.connected}")
            return cls(name, "gpu" if chip else "cpu", devices, chip)
        shapes = ", ".join(f"{kind}:{'|'.join(slices)}" for kind, slices in SLICES.items())
        problem = f"={name}: unknown" if name else " is missing"
        raise UserError(f"--topology{problem}; there are {shapes}, {', '.join(f'{gpu}:N' for gpu in GPUS)} and cpu:N")


def check_libtpu() -> None:
    """Raises UserError if the compiler for TPUs is missing, or not of the version that the installed jax is made for."""
    pinned = [
        match[1]
        for requirement in importlib.metadata.requires("jax") or ()
        if (match := re.match(r"libtpu\s*==\s*([\d.]+?)\.?\*?\s*;", requirement))
    ]
    remedy = f"pip install 'jax[tpu]=={jax.__version__}' (the extra plan), or launch/setup.sh --accelerator=tpu"
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"libtpu, the compiler for TPUs, is not installed (it needs no TPU): {remedy}")
    try:
        installed = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:  # a nightly build has another name
        installed = "of an unknown version"
    if pinned and not f"{installed}.".startswith(f"{pinned[0]}."):
        raise UserError(
            f"libtpu {installed} is not the version for jax {jax.__version__}, which is {pinned[0]}: {remedy}"
        )

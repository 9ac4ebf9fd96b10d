"""What a run of a compiled program costs a device: bytes through the network and the main memory, and matrix products.

XLA's own `cost_analysis` counts the body of a loop once, however often it runs.
"""

import re
from collections import defaultdict
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np

from tools.lib.hlo import Instruction, Program

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# No data moves for these, or it is counted where the operation starts.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("while", "call", "conditional", "opt-barrier", "async-start", "async-update"),
}
TRANSCENDENTAL = {
    *(
        "exponential",
        "exponential-minus-one",
        "log",
        "log-plus-one",
        "tanh",
        "erf",
        "logistic",
        "rsqrt",
        "sqrt",
        "power",
    ),
}
ARITHMETIC = {
    *("add", "subtract", "multiply", "divide", "maximum", "minimum", "compare", "select", "clamp", "negate", "abs"),
    *("convert", "reduce", "and", "or", "xor", "not", "shift-left", "shift-right-logical", "shift-right-arithmetic"),
}
# These return what they read, too.
STARTS = {f"{kind}-start" for kind in ("copy", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")}
SLICES = ("dynamic-slice", "slice", "gather")  # read as much as they return
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # in place: the number of the operand that is written


# ----------------------------------------------------------------------------------------------------------------------
# The network
# ----------------------------------------------------------------------------------------------------------------------


class Collective(NamedTuple):
    """A collective operation of a program."""

    kind: str
    bytes: int  # of the whole array of a group: gathered, or before it is reduced, or exchanged
    group: tuple[int, ...]  # numbers of the devices of one of its groups
    times: int  # that it runs
    loops: tuple[str, ...]  # op_name of the loops around it, the outermost first
    op_name: str

    @property
    def devices(self) -> int:
        return len(self.group)

    @property
    def sent_bytes(self) -> float:
        """Bytes that a device sends in a run of the program, by the algorithm that sends the least (a ring)."""
        if self.kind == "collective-permute":
            return float(self.times * self.bytes)
        passes = 2 if self.kind == "all-reduce" else 1
        return self.times * passes * self.bytes * (self.devices - 1) / self.devices


def collectives(program: Program) -> list[Collective]:
    """Returns the collective operations; `loops` says which are repeated, and by what.

    A program for TPUs repeats an asynchronous one in each fusion that it overlaps with; it counts once, where it starts.
    """
    starts = {
        step.computation for step in program.executions if '"AsyncCollectiveStart"' in step.instruction.attributes
    }
    started = {_channel(step.instruction) for step in program.executions if step.computation in starts} - {""}
    result = []
    for instruction, computation, times, loops, is_fused in program.executions:
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES or (is_fused and computation not in starts and _channel(instruction) in started):
            continue
        operands = program.operands(instruction, computation)
        inputs, outputs = sum(map(_bytes, operands)), _bytes(instruction)
        if instruction.opcode in STARTS:
            outputs -= inputs
        if kind == "collective-permute":  # also returns numbers of synchronization
            outputs = inputs
        if computation.startswith("all-reduce-scatter"):  # a fusion of an all-reduce and a slice of its result
            kind = "reduce-scatter"
        group = first_group(instruction.attributes, program.devices)
        if len(group) > 1:
            result.append(Collective(kind, max(inputs, outputs), group, times, loops, instruction.op_name))
    return result


def first_group(attributes: str, devices: int) -> tuple[int, ...]:
    """Returns the numbers of the devices in the first group of a collective operation of a program for `devices`."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](.*?)\{([^}]*)\}", attributes):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        order = re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", mesh[2])
        numbers = _reordered(order[1], order[2]) if order else np.arange(devices)
        axes = [[*sizes].index(axis) for axis in re.findall(r"'(\w+)'", mesh[3])]
        numbers = np.moveaxis(numbers.reshape([*sizes.values()]), axes, range(len(axes)))
        return tuple(numbers.reshape(prod(numbers.shape[: len(axes)]), -1)[:, 0].tolist())
    if regular := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        return tuple(_reordered(regular[3], regular[4]).reshape(int(regular[1]), int(regular[2]))[0].tolist())
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return tuple(int(number) for number in listed[1].split(","))
    return tuple(range(devices))


def _reordered(shape: str, permutation: str | None) -> np.ndarray:
    """Returns the numbers from 0 in an array of a shape, with its axes permuted."""
    sizes = [int(size) for size in shape.split(",")]
    return (
        np.arange(prod(sizes))
        .reshape(sizes)
        .transpose([int(axis) for axis in permutation.split(",")] if permutation else None)
    )


def _channel(instruction: Instruction) -> str:
    return (re.findall(r"channel_id=(\d+)", instruction.attributes) or [""])[0]


# ----------------------------------------------------------------------------------------------------------------------
# Matrix products and the main memory
# ----------------------------------------------------------------------------------------------------------------------


class Cost(NamedTuple):
    """What an instruction costs a device each time that it runs; a fusion is one instruction."""

    instruction: Instruction
    times: int
    flops: int  # of matrix products: 2 for a multiplication and an addition
    bytes: int  # read from and written to the main memory; what is on the chip, as the vector memory of a TPU, is free
    arithmetic: int  # operations on single numbers: additions, comparisons, shifts, ...
    transcendentals: int  # exponential functions and their kin


def costs(program: Program) -> list[Cost]:
    """Returns the costs of all instructions that run one after the other."""
    counter = _Counter(program)
    return [
        Cost(step.instruction, step.times, *counter.costs(step.instruction, step.computation))
        for step in program.executions
        if not step.is_fused
    ]


class _Counter:
    """Counts operations and bytes of instructions."""

    def __init__(self, program: Program):
        self.program = program

    def costs(self, instruction: Instruction, computation: str) -> tuple[int, int, int, int]:
        flops, moved = self.flops(instruction, computation), self.moved(instruction, computation)
        return (
            flops,
            moved,
            self.elements(instruction, computation, ARITHMETIC),
            self.elements(instruction, computation, TRANSCENDENTAL),
        )

    def elements(self, instruction: Instruction, computation: str, opcodes: set[str]) -> int:
        """Returns the numbers that operations of some kinds are applied to."""
        if instruction.opcode == "fusion":
            inner = instruction.called[0]
            return sum(self.elements(line, inner, opcodes) for line in self.program.computations[inner].values())
        if instruction.opcode not in opcodes:
            return 0
        line = self.program.operands(instruction, computation)[0] if instruction.opcode == "reduce" else instruction
        return prod(line.outputs[0].dims)

    def flops(self, instruction: Instruction, computation: str) -> int:
        if instruction.opcode == "fusion":
            inner = instruction.called[0]
            return sum(self.flops(line, inner) for line in self.program.computations[inner].values())
        if instruction.opcode not in ("dot", "convolution"):
            return 0
        left, right = (operand.outputs[0].dims for operand in self.program.operands(instruction, computation)[:2])
        return (_dot_flops if instruction.opcode == "dot" else _convolution_flops)(instruction, left, right)

    def moved(self, instruction: Instruction, computation: str) -> int:
        opcode, operands = instruction.opcode, self.program.operands(instruction, computation)
        if opcode in FREE or opcode.endswith("-done") or 'target="AllocateBuffer"' in instruction.attributes:
            return 0
        if opcode == "fusion":
            inner = instruction.called[0]
            return self.written(inner, instruction) + sum(
                self.read(inner, number, in_memory(operand)) for number, operand in enumerate(operands)
            )
        if opcode in SLICES:
            return in_memory(operands[0], _bytes(instruction)) + in_memory(instruction)
        if opcode in UPDATES:
            update = operands[UPDATES[opcode]]
            return in_memory(update) + in_memory(instruction, _bytes(update))
        if opcode in STARTS:
            return in_memory(instruction)
        if opcode == "slice-start":  # returns the source, too, of which it reads a part
            part = instruction.outputs[len(operands)]
            return in_memory(operands[0], part.bytes) + (0 if part.on_chip else part.bytes)
        return in_memory(instruction) + sum(map(in_memory, operands))

    def read(self, fused: str, number: int, whole: int) -> int:
        """Returns the bytes of an operand of `whole` bytes that a fused computation reads."""
        return min(whole, self.used(fused, self.parameters[fused][number], whole)) if whole else 0

    def used(self, fused: str, name: str, whole: int) -> int:
        """Returns the bytes that the users of a value read: of slices what they return, of updates in place nothing."""
        used = 0
        for user in self.users[fused][name]:
            if user.opcode == "bitcast":
                used += self.used(fused, user.name, whole)
            elif user.opcode in SLICES and user.operands[0] == name:
                used += _bytes(user)
            elif user.opcode == "fusion":
                used += self.read(user.called[0], user.operands.index(name), whole)
            elif not (user.opcode in UPDATES and user.operands[0] == name):
                return whole
        return used

    def written(self, fused: str, fusion: Instruction) -> int:
        """Returns the bytes that a fusion writes; of updates in place, what they replace."""
        lines = self.program.computations[fused]
        root = next(line for line in lines.values() if line.is_root)
        leaves = [lines[name] for name in root.operands] if root.opcode == "tuple" else [root]
        if len(leaves) != len(fusion.outputs):
            return in_memory(fusion)
        total = 0
        for leaf, array in zip(leaves, fusion.outputs, strict=True):
            while leaf.opcode == "bitcast":
                leaf = lines[leaf.operands[0]]
            if array.on_chip:
                continue
            if leaf.opcode in UPDATES:
                total += min(array.bytes, _bytes(lines[leaf.operands[UPDATES[leaf.opcode]]]))
            elif leaf.opcode == "fusion" and len(leaf.outputs) == 1:
                total += self.written(leaf.called[0], replace(leaf, outputs=(array,)))
            else:
                total += array.bytes
        return total

    @cached_property
    def parameters(self) -> dict[str, dict[int, str]]:
        return {
            name: {int(line.arguments): line.name for line in lines.values() if line.opcode == "parameter"}
            for name, lines in self.program.computations.items()
        }

    @cached_property
    def users(self) -> dict[str, dict[str, list[Instruction]]]:
        users: dict[str, dict[str, list[Instruction]]] = {name: defaultdict(list) for name in self.program.computations}
        for name, lines in self.program.computations.items():
            for line in lines.values():
                for operand in set(line.operands):
                    users[name][operand].append(line)
        return users


def _bytes(instruction: Instruction) -> int:
    return sum(array.bytes for array in instruction.outputs)


def in_memory(instruction: Instruction, at_most: int | None = None) -> int:
    """Returns the bytes of a result that are in the main memory."""
    size = sum(array.bytes for array in instruction.outputs if not array.on_chip)
    return size if at_most is None else min(size, at_most)


def _dot_flops(dot: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> int:
    contracted = re.findall(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)[0]
    return 2 * prod(dot.outputs[0].dims) * prod(left[int(axis)] for axis in contracted.split(",") if axis)


def _convolution_flops(convolution: Instruction, left: tuple[int, ...], kernel: tuple[int, ...]) -> int:
    """Counts the products with elements that are there; a batch of products is a convolution over mostly padding on TPUs."""
    labels = re.findall(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)[0]
    window = dict(re.findall(r"(size|stride|pad|lhs_dilate|rhs_dilate)=([\dx_-]+)", convolution.attributes))
    inputs, kernels, outputs = (
        dict(zip(names, dims, strict=True))
        for names, dims in zip(labels, (left, kernel, convolution.outputs[0].dims), strict=True)
    )
    total = 2 * outputs["b"] * outputs["f"] * kernels["i"]
    for place, name in enumerate(sorted(set(outputs) - {"b", "f"})):
        stride, left_step, right_step = (
            int(window[option].split("x")[place]) if option in window else 1
            for option in ("stride", "lhs_dilate", "rhs_dilate")
        )
        low = int(window["pad"].split("x")[place].split("_")[0]) if "pad" in window else 0
        total *= _pairs(inputs[name], kernels[name], outputs[name], stride, low, left_step, right_step)
    return total


def _pairs(size: int, kernel: int, outputs: int, stride: int, low: int, left_step: int, right_step: int) -> int:
    """Returns the pairs of output and kernel positions at which the input has an element, along one axis."""
    if (kernel, stride, low, left_step) == (1, 1, 0, 1):
        return outputs
    (short, step_of_short), (long, step_of_long) = sorted([(outputs, stride), (kernel, right_step)])
    along = np.arange(long) * step_of_long - low
    total = 0
    for position in range(short):
        places = along + position * step_of_short
        total += int(np.count_nonzero((places % left_step == 0) & (places >= 0) & (places < size * left_step)))
    return total

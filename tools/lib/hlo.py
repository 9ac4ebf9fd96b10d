"""Reads compiled programs (`compiled.as_text()`): their instructions, and how often a run executes each of them."""

import dataclasses
import math
import re
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}  # others have theirs in the name: bf16, f8e4m3fn
ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?")
CALLED = re.compile(
    r"(?:calls|body|condition|to_apply|branch_computations|called_computations)=(?:\{([^}]*)\}|%([\w.-]+))"
)
HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.-]+) = ")
OPCODE = re.compile(r"\s*([\w-]+)\(")


class Array(NamedTuple):
    """An array of a program, on one device."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool  # in a memory space of its own, such as the vector memory of a TPU

    @property
    def bytes(self) -> int:
        bits = BITS[self.dtype] if self.dtype in BITS else int(re.findall(r"\d+", self.dtype)[0])
        return math.prod(self.dims) * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation; `outputs` are the leaves of its result."""

    name: str
    opcode: str
    outputs: tuple[Array, ...]
    arguments: str  # what is in the parentheses: operands, the number of a parameter, the value of a constant
    attributes: str  # what follows them
    is_root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.arguments)

    @property
    def called(self) -> list[str]:
        """Names of the computations that it calls."""
        groups = (several or one for several, one in CALLED.findall(self.attributes))
        return [name.strip(" %") for group in groups for name in group.split(",")]

    @property
    def op_name(self) -> str:
        """Path of the operation in the traced function, e.g. 'jit(train_step)/transpose(jvp())/while/body/dot_general'."""
        return (re.findall(r'op_name="([^"]*)"', self.attributes) or [""])[0]


Computation = dict[str, Instruction]  # in the order of execution


class Execution(NamedTuple):
    """An instruction, and how often a run of the program executes it."""

    instruction: Instruction
    computation: str
    times: int
    loops: tuple[str, ...]  # op_name of the loops around it, the outermost first
    is_fused: bool


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program: its computations by name."""

    computations: dict[str, Computation]
    entry: str
    devices: int

    @classmethod
    def parse(cls, text: str) -> "Program":
        computations, entry, current = dict[str, Computation](), "", Computation()
        for line in text.splitlines():
            if line.startswith(" "):
                if match := INSTRUCTION.match(line):
                    current[match[2]] = _instruction(match[2], line[match.end() :], bool(match[1]))
            elif header := HEADER.match(line):
                current = computations[header[2]] = Computation()
                entry = header[2] if header[1] else entry
        devices = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
        return cls(computations, entry, int(devices[1]) if devices else 1)

    @cached_property
    def executions(self) -> list[Execution]:
        """All instructions that run, those inside fusions too; of a conditional, every branch."""
        return list(self._executions(self.entry, 1, (), False))

    def _executions(self, name: str, times: int, loops: tuple[str, ...], is_fused: bool) -> Iterator[Execution]:
        for instruction in self.computations[name].values():
            yield Execution(instruction, name, times, loops, is_fused)
            if instruction.opcode == "while":
                inside, in_each = (*loops, instruction.op_name), times * self.trip_count(instruction)
            elif instruction.opcode in ("fusion", "call", "conditional", "async-start"):
                inside, in_each = loops, times
            else:  # functions of two numbers, of reductions and sorts
                continue
            for called in instruction.called:
                yield from self._executions(called, in_each, inside, is_fused or instruction.opcode == "fusion")

    def trip_count(self, loop: Instruction) -> int:
        """Returns how often the body of a loop runs: what XLA knows, or else the constant that its condition compares with.

        Raises:
          ValueError: the program says neither.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        condition = re.findall(r"condition=%([\w.-]+)", loop.attributes)[0]
        lines = self.computations[condition].values()
        constants = [line.arguments for line in lines if line.opcode == "constant" and line.arguments.isdigit()]
        if len(constants) != 1:
            raise ValueError(f"loop {loop.name}: the program does not say how often it runs")
        return int(constants[0])

    def operands(self, instruction: Instruction, computation: str) -> list[Instruction]:
        """Returns the instructions whose results an instruction of `computation` takes."""
        return [self.computations[computation][name] for name in instruction.operands]


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    """Reads what follows 'NAME = ': the type, the opcode, the arguments in parentheses, the attributes."""
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    outputs = tuple(
        Array(
            dtype, tuple(int(size.lstrip("<=")) for size in dims.split(",") if size), bool(re.search(r"S\(\d", layout))
        )
        for dtype, dims, layout in ARRAY.findall(text[:end])
    )
    opcode = OPCODE.match(text, end)
    assert opcode, text[:200]
    close = _closing(text, opcode.end() - 1)
    return Instruction(name, opcode[1], outputs, text[opcode.end() : close - 1], text[close:], is_root)


def _closing(text: str, start: int) -> int:
    """Returns the place after the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.end()
    raise ValueError(f"no closing parenthesis: {text[start : start + 80]}")

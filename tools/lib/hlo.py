"""Reads compiled programs (`compiled.as_text()`): their instructions, and how often a run executes each of them."""

import dataclasses
import math
import re
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}  # others are in the name: bf16, f8e4m3fn
ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?")
CALLED = re.compile(
    r"(?:calls|body|condition|to_apply|branch_computations|called_computations)=(?:\{([^}]*)\}|%([\w.-]+))"
)
HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.-]+) = ")
COPIES = ("copy", "bitcast")  # of a number
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
    def index(self) -> int | None:
        """Which element of a tuple a get-tuple-element takes; None for other instructions."""
        return int(re.findall(r"index=(\d+)", self.attributes)[0]) if self.opcode == "get-tuple-element" else None

    @property
    def op_name(self) -> str:
        """Path of the operation in the traced function, e.g. 'jit(train_step)/transpose(jvp())/while/body/dot_general'."""
        return (re.findall(r'op_name="([^"]*)"', self.attributes) or [""])[0]


Computation = dict[str, Instruction]  # in the order of execution
Calls = tuple[tuple[Instruction, str], ...]  # instructions that call others, with the names of their computations


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
        """All instructions that run, those inside fusions too; of a conditional, every branch.

        Raises:
          ValueError: the program does not say how often a loop runs.
        """
        return list(self._executions(self.entry, 1, (), ()))

    def _executions(self, name: str, times: int, calls: Calls, loops: tuple[str, ...]) -> Iterator[Execution]:
        is_fused = any(call.opcode == "fusion" for call, _ in calls)
        for instruction in self.computations[name].values():
            yield Execution(instruction, name, times, loops, is_fused)
            if instruction.opcode == "while":
                inside, in_each = (*loops, instruction.op_name), times * self.trip_count(instruction, name, calls)
            elif instruction.opcode in ("fusion", "call", "conditional", "async-start"):
                inside, in_each = loops, times
            else:  # functions of two numbers, of reductions and sorts
                continue
            for called in instruction.called:
                yield from self._executions(called, in_each, ((instruction, name), *calls), inside)

    def trip_count(self, loop: Instruction, computation: str, calls: Calls = ()) -> int:
        """Returns how often the body of a loop runs: what XLA writes down, or else what its counter says.

        Args:
          loop: an instruction of `computation`.
          computation: its name.
          calls: the instructions that led there, the innermost first, with the names of their computations.

        Raises:
          ValueError: the program does not say.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        condition, body = (re.findall(rf"{name}=%([\w.-]+)", loop.attributes)[0] for name in ("condition", "body"))
        inner = ((loop, computation), *calls)
        compare, result = _root(self.computations[condition]), _root(self.computations[body])
        counter = self.computations[condition].get((compare.operands or [""])[0])
        if (
            compare.opcode == "compare"
            and "direction=LT" in compare.attributes
            and counter
            and counter.index is not None
        ):
            start = self._value(loop.operands[0], computation, calls, counter.index)
            stop = self._value(compare.operands[1], condition, inner)
            added = _copied(self.computations[body], result.operands[counter.index])
            values = [self._value(name, body, inner) for name in added.operands if added.opcode == "add"]
            steps = [value for value in values if value]
            if start is not None and stop is not None and len(steps) == 1:
                return max(0, -(-(stop - start) // steps[0]))
        raise ValueError(f"loop {loop.name}: the program does not say how often it runs")

    def _value(self, name: str, computation: str, calls: Calls, index: int | None = None) -> int | None:
        """Returns an integer, or element `index` of a tuple, that is known before the program runs; None for all others."""
        line = self.computations[computation][name]
        if line.opcode == "constant":
            return int(line.arguments) if line.arguments.isdigit() else None
        if line.opcode in (*COPIES, "reshape", "convert", "opt-barrier"):
            return self._value(line.operands[0], computation, calls, index)
        if line.opcode == "get-tuple-element" and index is None:
            return self._value(line.operands[0], computation, calls, line.index)
        if line.opcode == "tuple" and index is not None:
            return self._value(line.operands[index], computation, calls)
        if line.opcode == "parameter" and index is not None and calls and calls[0][0].opcode == "while":
            (loop, outside), *others = calls
            body = self.computations[re.findall(r"body=%([\w.-]+)", loop.attributes)[0]]
            again = _copied(body, _root(body).operands[index])
            if again.index == index and body[again.operands[0]].opcode == "parameter":  # the loop does not change it
                return self._value(loop.operands[0], outside, tuple(others), index)
        return None

    def operands(self, instruction: Instruction, computation: str) -> list[Instruction]:
        """Returns the instructions whose results an instruction of `computation` takes."""
        return [self.computations[computation][name] for name in instruction.operands]


def _copied(computation: Computation, name: str) -> Instruction:
    """Returns an instruction or, of a copy, the one that is copied."""
    line = computation[name]
    return _copied(computation, line.operands[0]) if line.opcode in COPIES else line


def _root(computation: Computation) -> Instruction:
    return next(line for line in computation.values() if line.is_root)


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

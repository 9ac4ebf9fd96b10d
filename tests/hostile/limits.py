"""What tests of hostile input share: programs under limits of memory and time, valid JSON made invalid, damaged bytes."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import strategies as st

from bert_jax.errors import LONGEST_MESSAGE, UserError
from tests import running

# Values that no reader expects in at least one of its places.
ODD_VALUES = [
    *(
        None,
        True,
        False,
        0,
        -1,
        10**9,
        10**30,
        0.5,
        -1e300,
        1e-300,
        "",
        "x",
        "\x1b[31m<img>\n",
        "__class__",
        "../../etc",
    ),
    *([], {}, [[]], [None], {"": None}, {"__class__": 1}, "x" * 5000, list(range(50)), {"a": {"b": {"c": {}}}}),
]


class Ended(NamedTuple):
    code: int
    stdout: str
    stderr: str
    seconds: float
    megabytes: float  # peak of resident memory


_LIMITER = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]) << 20,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]), int(sys.argv[2]) + 1))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
os.execvp(sys.argv[3], sys.argv[3:])
"""


def limited(
    arguments: list[str], *, megabytes: int, seconds: int, stdin: str = "", folder: Path = running.ROOT
) -> Ended:
    """Runs a program that may not take more memory (data and heap) or time of a core; a hang is an error, too."""
    command = [sys.executable, "-S", "-c", _LIMITER, str(megabytes), str(seconds), *arguments]
    with (
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
        tempfile.TemporaryFile("w+") as given,
    ):
        given.write(stdin)
        given.seek(0)
        start, peak = time.monotonic(), 0.0
        process = subprocess.Popen(command, stdin=given, stdout=out, stderr=err, env=running.environment(1), cwd=folder)
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() - start > running.TIMEOUT:
                process.kill()
                os.wait4(process.pid, 0)
                raise AssertionError(f"{arguments} hangs")
            # Not ended[2].ru_maxrss, which is at least the memory of the process that starts this one.
            peak = max(peak, _peak(process.pid))
            time.sleep(0.01)
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    return Ended(process.returncode, texts[0], texts[1], time.monotonic() - start, peak)


def _peak(pid: int) -> float:
    """The peak of resident memory of a running process, in megabytes."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def python(code: str, *arguments: object) -> list[str]:
    """The command that runs Python code with arguments."""
    return [sys.executable, "-c", code, *map(str, arguments)]


def assert_refused(ended: Ended, *parts: str) -> None:
    """Asserts that a command refused its input with one line and exit code 2."""
    assert ended.code == 2, ended
    running.assert_one_line(ended.stderr, *parts)


@contextmanager
def refused(*parts: str) -> Iterator[None]:
    """Asserts that what is inside raises a UserError whose message is one printable line that contains `parts`."""
    with pytest.raises(UserError) as caught:
        yield
    assert_message(caught.value)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def accepted_or_refused(read: Callable[[], Any]) -> Any:
    """What `read` returns, or None where it refuses with a proper message; any other exception is a failure."""
    try:
        return read()
    except UserError as error:
        assert_message(error)
        return None


def assert_message(error: UserError) -> None:
    message = str(error)
    assert message.isprintable() and 10 < len(message) < LONGEST_MESSAGE + 100, message
    assert ";" in message or ":" in message, f"{message!r} names no thing or no remedy"


# ----------------------------------------------------------------------------------------------------------------------
# Mutations
# ----------------------------------------------------------------------------------------------------------------------


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all values within JSON, the whole included."""
    found = [path]
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, entry in entries:
        found += places(entry, (*path, name))
    return found


def changed(value: Any, path: tuple, change: Callable[[Any, Any], None], replacement: Any) -> Any:
    """A copy of JSON in which `change(container, key)` was made at a path; `replacement` if that is the whole."""
    copy = json.loads(json.dumps(value))
    if not path:
        return replacement
    container = copy
    for name in path[:-1]:
        container = container[name]
    change(container, path[-1])
    return copy


@st.composite
def mutated_json(draw: st.DrawFn, value: Any) -> str:
    """The text of valid JSON with one or two values replaced, removed or renamed; now and then cut off or not JSON at all."""
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(places(value)))
        odd = draw(st.sampled_from(ODD_VALUES))
        kind = draw(st.sampled_from(["replace", "replace", "remove", "rename"]))

        def change(container: Any, key: Any, kind: str = kind, odd: Any = odd) -> None:
            if kind == "replace":
                container[key] = odd
                return
            entry = container.pop(key)
            if kind == "rename" and isinstance(container, dict):
                container[str(odd)[:40]] = entry

        value = changed(value, path, change, odd)
    text = json.dumps(value)
    how = draw(st.sampled_from(["whole"] * 6 + ["cut", "NaN", "infinite", "huge", "nested", "surrogate"]))
    if how == "cut":
        return text[: draw(st.integers(0, max(0, len(text) - 1)))]
    replacement = {
        "NaN": "NaN",
        "infinite": "1e999",
        "huge": "1" * 5000,
        "nested": "[" * 100_000 + "]" * 100_000,
        "surrogate": '"\\ud800"',
    }.get(how)
    if replacement is None or not isinstance(value, dict | list) or not value:
        return text
    marker = json.dumps("MARKER")
    path = draw(st.sampled_from(places(value)[1:]))
    return json.dumps(changed(value, path, lambda container, key: container.__setitem__(key, "MARKER"), None)).replace(
        marker, replacement
    )


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes that are cut off, or some of which are others."""
    if draw(st.integers(0, 3)) == 0:
        return content[: draw(st.integers(0, len(content) - 1))]
    damaged = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        damaged[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(damaged)

"""Reads and writes files: atomic writes; reads of regular files of limited size only; strict JSON."""

import contextlib
import os
import re
import socket
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from bert_jax.errors import UserError

# Limits on what is read into memory at once, in bytes. The largest tokenizer.json of a published encoder has 33 MB.
LARGEST_FILE, LONGEST_LINE = 1 << 26, 1 << 25
# Lists and objects in a JSON file; each takes about 70 bytes in memory and possibly only 3 in the file.
MOST_CONTAINERS = 1 << 22
GET_AGAIN = "get the file again"
# A JSON escape; unpaired surrogates are in the group.
_ESCAPE = re.compile(rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u[dD][89a-fA-F]..)|\\.")


@contextlib.contextmanager
def whole_file(path: Path, binary: bool = False) -> Iterator[Any]:
    """Opens a file for writing, as UTF-8 or bytes; it replaces the old file at the end, or not at all after an error.

    Follows symbolic links and keeps permissions. Devices and pipes are written directly.

    Raises:
      UserError: the path is a folder.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; remove it, or use a file in it")
    mode: dict[str, Any] = {"mode": "wb"} if binary else {"mode": "w", "encoding": "utf-8"}
    if not is_replaceable(path):
        with path.open(**mode) as file:
            yield file
        return
    target = resolved(path)
    draft = draft_of(target)
    try:
        with draft.open(**mode) as file:
            yield file
            if target.exists():
                draft.chmod(stat.S_IMODE(target.stat().st_mode))
        draft.replace(target)
    except OSError as error:
        if error.filename in (None, str(draft)):  # users do not know about drafts
            error.filename = str(path)
        raise
    finally:
        draft.unlink(missing_ok=True)


def draft_of(path: Path) -> Path:
    """Returns where this process writes a file before it takes its place.

    It is unique, because several processes and hosts may write the same file; short, because names have a maximum length.
    """
    identity = zlib.crc32(os.fsencode(f"{socket.gethostname()}/{path.name}"))
    return path.with_name(f"draft{os.getpid()}.{identity:08x}")


def is_replaceable(path: Path) -> bool:
    """Checks whether a new file may replace this one: not a device, pipe or open file, like /dev/stdout."""
    return path.absolute().parts[1:2] not in (("dev",), ("proc",)) and (path.is_file() or not path.exists())


def same_path(one: str, other: str) -> bool:
    """Checks whether two paths lead to the same file. Raises UserError as `resolved`."""
    return resolved(Path(one)) == resolved(Path(other))


def resolved(path: Path) -> Path:
    """Returns the absolute path without symbolic links. Raises UserError for circular links."""
    with contextlib.suppress(OSError, RuntimeError):
        if not (target := path.resolve()).is_symlink():
            return target
    raise UserError(f"{path}: a circular symbolic link, or a path that is too long; use another")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 atomically. Raises OSError with the name of the file, e.g. on a full disk."""
    with whole_file(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically; NaN and infinity become null."""
    write_text(path, msgspec.json.format(msgspec.json.encode(value).decode(), indent=2) + "\n")


def open_regular(path: Path, remedy: str = GET_AGAIN) -> BinaryIO:
    """Opens a file for reading. Raises UserError if it is missing, unreadable, or a folder, device or pipe."""
    try:
        if is_regular(path):
            return path.open("rb")
        what = "a folder" if path.is_dir() else "not a regular file" if path.exists() else "missing"
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its path and permissions") from None
    raise UserError(f"{path}: {what}; {remedy}")


def is_regular(path: Path) -> bool:
    """Checks whether a path is a regular file: not a folder, device or pipe, nor a virtual file in /proc or /sys."""
    return path.is_file() and resolved(path).parts[1:2] not in (("proc",), ("sys",))


def read_bytes(path: Path, remedy: str = GET_AGAIN, largest: int = LARGEST_FILE) -> bytes:
    """Reads a regular file. Raises UserError as `open_regular`, and if it has more than `largest` bytes."""
    with open_regular(path, remedy) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise UserError(f"{path}: larger than {largest:,} bytes; {remedy}")
    return content


def read_text(path: Path, remedy: str = GET_AGAIN) -> str:
    """Reads a UTF-8 file. Raises UserError as `read_bytes`, and if it is not UTF-8."""
    try:
        return read_bytes(path, remedy).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; {remedy}") from None


def read_json(path: Path, form: Any = dict[str, Any], remedy: str = GET_AGAIN) -> Any:
    """Reads a JSON file; `form` is its type, as for msgspec.json.decode: Any, dict[str, float], a TypedDict ...

    Raises:
      UserError: as `read_bytes`, or the file is not strict JSON of that form. The message ends with `remedy`.
    """
    content = read_bytes(path, remedy)
    try:
        return decode_json(content, form)
    except ValueError as error:
        raise UserError(f"{path}: damaged, or not what is expected ({error}); {remedy}") from None


def as_form(value: Any, form: Any, path: Path, remedy: str = GET_AGAIN) -> Any:
    """Converts a value that was read from JSON to another type. Raises UserError if it does not match."""
    try:
        return msgspec.convert(value, form)
    except ValueError as error:
        raise UserError(f"{path}: damaged, or not what is expected ({error}); {remedy}") from None


def decode_json(content: bytes | str, form: Any = Any) -> Any:
    """Decodes JSON. Raises ValueError if it is not strict JSON of this type, or too deeply nested or too large.

    Strict: NaN, Infinity, numbers outside the range of a float, invalid UTF-8 and unpaired surrogates are errors.
    """
    data = content.encode() if isinstance(content, str) else content  # an unpaired surrogate is a ValueError
    if len(data) > MOST_CONTAINERS and data.count(b"[") + data.count(b"{") > MOST_CONTAINERS:
        raise ValueError(f"more than {MOST_CONTAINERS:,} lists and objects")
    try:
        return msgspec.json.decode(data, type=form)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        if without_half_pairs(data) != data:
            raise ValueError("contains the escape of an unpaired surrogate") from None
        hint = ", and NaN and Infinity are not JSON" if b"NaN" in data or b"Infinity" in data else ""
        raise ValueError(f"{error}{hint}") from None


def without_half_pairs(data: bytes) -> bytes:
    """Replaces each escape of an unpaired surrogate in JSON by a question mark."""
    return _ESCAPE.sub(lambda escape: b"?" if escape[1] else escape[0], data)


def read_lines(path: Path, remedy: str = GET_AGAIN) -> Iterator[bytes]:
    """Yields the lines of a file with line ends. Raises UserError as `open_regular` and `lines_of`."""
    with open_regular(path, remedy) as file:
        yield from lines_of(file, path)


def lines_of(file: BinaryIO, name: object) -> Iterator[bytes]:
    """Yields the lines of an open file with line ends. Raises UserError for one longer than `LONGEST_LINE`."""
    for number in range(1, 1 << 62):
        line = file.readline(LONGEST_LINE + 1)
        if len(line) > LONGEST_LINE:
            raise UserError(f"{name}: line {number} is longer than {LONGEST_LINE:,} bytes; split it")
        if not line:
            return
        yield line

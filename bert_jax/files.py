"""Files: written whole or not at all, read only if they are regular files of a size that makes sense, JSON in one way."""

import contextlib
import os
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from bert_jax.errors import UserError

# Limits on what is read into memory at once, in bytes. The largest tokenizer.json of a published encoder has 33 MB, and a book
# has a few.
LARGEST_FILE, LONGEST_LINE = 1 << 26, 1 << 25
# Lists and objects in a file of JSON; each takes some 70 bytes in memory and may take 3 in the file.
MOST_CONTAINERS = 1 << 22
GET_AGAIN = "get the file again"
# An escape of JSON; in the group, if it is half of a surrogate pair, which is no character.
_ESCAPE = re.compile(rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u[dD][89a-fA-F]..)|\\.")

# ----------------------------------------------------------------------------------------------------------------------
# Writing
# ----------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path: Path, binary: bool = False) -> Iterator[Any]:
    """Opens a file to write, as UTF-8 or bytes. It takes its name at the end; after an error the name is as it was before.

    Symbolic links are followed, and permissions are kept. Devices and pipes are written directly.

    Raises:
      UserError: it is a folder.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; remove it, or name a file in it")
    if not _is_replaceable(path):
        with path.open("wb") if binary else path.open("w", encoding="utf-8") as file:
            yield file
        return
    target = resolved(path)
    # Of this process, for several may write the same file; and short, for the file's own name may be as long as names can be.
    draft = target.with_name(f"draft{os.getpid()}.{zlib.crc32(os.fsencode(target.name)):08x}")
    try:
        with draft.open("wb") if binary else draft.open("w", encoding="utf-8") as file:
            yield file
            if target.exists():
                draft.chmod(stat.S_IMODE(target.stat().st_mode))
        draft.replace(target)
    except OSError as error:
        if error.filename in (None, str(draft)):  # the user knows no draft
            error.filename = str(path)
        raise
    finally:
        draft.unlink(missing_ok=True)


def _is_replaceable(path: Path) -> bool:
    """Whether a new file may take this name: not that of a device or a pipe, nor one of an open file, like /dev/stdout."""
    return path.absolute().parts[1:2] not in (("dev",), ("proc",)) and (path.is_file() or not path.exists())


def same_path(one: str, other: str) -> bool:
    """Whether two paths lead to the same place. Raises UserError as `resolved`."""
    return resolved(Path(one)) == resolved(Path(other))


def resolved(path: Path) -> Path:
    """Returns the absolute path without symbolic links. Raises UserError for links that lead in a circle."""
    with contextlib.suppress(OSError, RuntimeError):
        if not (target := path.resolve()).is_symlink():
            return target
    raise UserError(f"{path}: a symbolic link that leads to itself, or a path that is too long; name another")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8, whole or not at all. Raises OSError, which names the file, e.g. on a full disk."""
    with whole_file(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, whole or not at all; null for numbers that are not finite, which JSON does not have."""
    write_text(path, msgspec.json.format(msgspec.json.encode(value).decode(), indent=2) + "\n")


# ----------------------------------------------------------------------------------------------------------------------
# Reading
# ----------------------------------------------------------------------------------------------------------------------


def open_regular(path: Path, remedy: str = GET_AGAIN) -> BinaryIO:
    """Opens a file to read. Raises UserError if it is missing, a folder, a device or a pipe, or cannot be read."""
    try:
        if is_regular(path):
            return path.open("rb")
        what = "a folder" if path.is_dir() else "not a regular file" if path.exists() else "missing"
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its name and permissions") from None
    raise UserError(f"{path}: {what}; {remedy}")


def is_regular(path: Path) -> bool:
    """Whether this is a file that has an end: no folder, device or pipe, nor what the kernel makes up in /proc and /sys."""
    return path.is_file() and resolved(path).parts[1:2] not in (("proc",), ("sys",))


def read_bytes(path: Path, remedy: str = GET_AGAIN, largest: int = LARGEST_FILE) -> bytes:
    """Returns what a regular file holds. Raises UserError as `open_regular`, and if it has more than `largest` bytes."""
    with open_regular(path, remedy) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise UserError(f"{path}: larger than {largest:,} bytes; {remedy}")
    return content


def read_text(path: Path, remedy: str = GET_AGAIN) -> str:
    """Returns the UTF-8 text of a file. Raises UserError as `read_bytes`, and if it is not UTF-8."""
    try:
        return read_bytes(path, remedy).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; {remedy}") from None


def read_json(path: Path, form: Any = dict[str, Any], remedy: str = GET_AGAIN) -> Any:
    """Returns what a JSON file holds.

    Args:
      path: the file.
      form: the type of it, as msgspec.json.decode takes it: Any, dict[str, float], a TypedDict ...
      remedy: the end of the message where something is wrong.

    Raises:
      UserError: as `read_bytes`, or the file is not strict JSON of that form.
    """
    content = read_bytes(path, remedy)
    try:
        return decode_json(content, form)
    except ValueError as error:
        raise UserError(f"{path}: damaged, or not what is expected ({error}); {remedy}") from None


def as_form(value: Any, form: Any, path: Path, remedy: str = GET_AGAIN) -> Any:
    """Returns a value that was read from JSON as another form: as `read_json`, for what is read for several purposes."""
    try:
        return msgspec.convert(value, form)
    except ValueError as error:
        raise UserError(f"{path}: damaged, or not what is expected ({error}); {remedy}") from None


def decode_json(content: bytes | str, form: Any = Any) -> Any:
    """Returns what JSON says. Raises ValueError if it is not strict JSON of this form, or nested or branched beyond reason.

    Strict: NaN, Infinity, numbers beyond a float's, bytes that are not UTF-8 and half surrogate pairs are errors.
    """
    data = content.encode() if isinstance(content, str) else content  # half of a surrogate pair is a ValueError
    if len(data) > MOST_CONTAINERS and data.count(b"[") + data.count(b"{") > MOST_CONTAINERS:
        raise ValueError(f"more than {MOST_CONTAINERS:,} lists and objects")
    try:
        return msgspec.json.decode(data, type=form)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        if without_half_pairs(data) != data:
            raise ValueError("half of a surrogate pair is escaped in it, which is no character") from None
        hint = ", and NaN and Infinity are not JSON" if b"NaN" in data or b"Infinity" in data else ""
        raise ValueError(f"{error}{hint}") from None


def without_half_pairs(data: bytes) -> bytes:
    """Returns JSON in which each escape of half a surrogate pair is a question mark."""
    return _ESCAPE.sub(lambda escape: b"?" if escape[1] else escape[0], data)


def read_lines(path: Path, remedy: str = GET_AGAIN) -> Iterator[bytes]:
    """Yields the lines of a file with their ends, one at a time. Raises UserError as `open_regular` and `lines_of`."""
    with open_regular(path, remedy) as file:
        yield from lines_of(file, path)


def lines_of(file: BinaryIO, name: object) -> Iterator[bytes]:
    """Yields the lines of an open file with their ends. Raises UserError for one longer than `LONGEST_LINE`."""
    for number in range(1, 1 << 62):
        line = file.readline(LONGEST_LINE + 1)
        if len(line) > LONGEST_LINE:
            raise UserError(f"{name}: line {number} is longer than {LONGEST_LINE:,} bytes; cut it into several")
        if not line:
            return
        yield line

"""Finds and opens the files of sources, local ones and those at URLs; nothing else in `sources/` opens a file."""

import contextlib
import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bert_jax.data.remote import Url, is_url
from bert_jax.data.sources.base import Progress
from bert_jax.errors import UserError
from bert_jax.files import GET_AGAIN, decode_json, is_regular, open_regular, read_json


class SourceFile(NamedTuple):
    """A file of a source."""

    path: Path | Url
    name: str  # the part of its path that stays the same if the folder is moved
    size: int  # bytes
    report: Callable[[int], None]  # takes the number of bytes that have been read


def open_file(path: Path | Url) -> BinaryIO:
    """Opens a file for reading. Raises UserError if it is missing, unreadable, or a folder, device or pipe."""
    return path.open() if isinstance(path, Url) else open_regular(path)


def absolute(path: Path | Url) -> str:
    """Returns the absolute path of a file, or its URL."""
    return str(path) if isinstance(path, Url) else str(path.absolute())


def stamp(path: Path | Url) -> str:
    """Returns a text that changes when the contents of a file do."""
    return path.stamp() if isinstance(path, Url) else str(path.stat().st_mtime_ns)


def read_json_file(path: Path | Url, form: Any, remedy: str = GET_AGAIN) -> Any:
    """Reads a small JSON file of this form. Raises UserError as `read_json`."""
    if isinstance(path, Path):
        return read_json(path, form, remedy)
    try:
        return decode_json(path.read_all(), form)
    except ValueError as error:
        raise UserError(f"{path}: damaged, or not what is expected ({error}); {remedy}") from None


def source_folder(name: str) -> Path | Url:
    """Returns the folder that a source names."""
    if is_url(name):
        return Url(name)
    with contextlib.suppress(RuntimeError):  # an unknown ~NAME
        name = str(Path(name).expanduser())
    return Path(name)


def find_files(pattern: str, progress: Progress) -> Iterator[SourceFile]:
    """Yields the files that match a glob pattern, sorted. Raises UserError if there are none."""
    named_files = Url(pattern).matches() if is_url(pattern) else _local_files(pattern)
    if not named_files:
        raise UserError(f"{pattern}: matches no file; use the path of a file or a glob pattern")
    yield from source_files(named_files, progress)


def source_files(named_files: Sequence[tuple[Path | Url, str]], progress: Progress) -> Iterator[SourceFile]:
    """Yields files with their names, in the given order; `progress` is called with the fraction of all of them."""
    sizes = [path.size if isinstance(path, Url) else path.stat().st_size for path, _ in named_files]
    *starts, total = accumulate(sizes, initial=0)

    def report(start: int, done: int) -> None:
        progress((start + done) / max(1, total))

    for (path, name), start, size in zip(named_files, starts, sizes, strict=True):
        yield SourceFile(path, name, size, partial(report, start))


def _local_files(pattern: str) -> list[tuple[Path | Url, str]]:
    """Returns the files that match a pattern, with their names, sorted. Raises UserError if it matches folders only."""
    with contextlib.suppress(RuntimeError):  # an unknown ~NAME
        pattern = str(Path(pattern).expanduser())
    with contextlib.suppress(OSError):  # a name that is too long
        if is_regular(Path(pattern)):  # brackets and asterisks may be parts of names
            return [(Path(pattern).resolve(), Path(pattern).name)]
    matches = sorted(map(Path, _matches(pattern)))
    # Several links may lead to one file; its first name counts.
    paths = sorted({path.resolve(): path for path in reversed(matches) if is_regular(path)}.values())
    if matches and not paths:
        raise UserError(f"{pattern}: matches only folders, devices or pipes; use the path of regular files")
    fixed = next((parent for parent in Path(pattern).parents if not glob.has_magic(str(parent))), Path())
    return [(path, path.relative_to(fixed).as_posix()) for path in paths]


def _matches(pattern: str) -> Iterator[str]:
    """Yields the paths that glob.glob(recursive=True) finds, without following loops of links forever."""
    parts = re.split(r"(?:^|(?<=/))(?:\*\*/)+", re.sub(r"(^|/)\*\*$", r"\1**/*", pattern), maxsplit=1)
    if len(parts) == 1:
        yield from glob.iglob(pattern)  # noqa: PTH207 - Path.glob refuses absolute patterns
        return
    for start in glob.iglob(parts[0]) if parts[0] else [""]:  # noqa: PTH207
        for folder in _folders(start):
            yield from _matches(glob.escape(folder) + parts[1])


def _folders(start: str) -> Iterator[str]:
    """Yields a folder and its subfolders, each once, with a trailing slash; without hidden and unreadable ones."""
    seen, stack = set[tuple[int, int]](), [start]
    while stack:
        folder = stack.pop()
        with contextlib.suppress(OSError):  # of a file, and of names that are too long
            with os.scandir(folder or ".") as entries:
                names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
            status = Path(folder).stat()
            if (identity := (status.st_dev, status.st_ino)) not in seen:
                seen.add(identity)
                stack += [f"{folder}{name}/" for name in sorted(names, reverse=True)]
                yield folder

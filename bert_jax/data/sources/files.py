"""Finds and opens the files of sources; nothing else in `sources/` opens a file."""

import contextlib
import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple

from bert_jax.data.sources.base import Progress
from bert_jax.errors import UserError
from bert_jax.files import is_regular, open_regular


class SourceFile(NamedTuple):
    """A file of a source."""

    path: Path
    name: str  # of its path the part that does not depend on the place of the folder
    size: int  # bytes
    report: Callable[[int], None]  # takes the number of bytes that have been read


def open_file(path: Path) -> BinaryIO:
    """Opens a file for reading. Raises UserError if it is missing, unreadable, or a folder, device or pipe."""
    return open_regular(path)


def find_files(pattern: str, progress: Progress) -> Iterator[SourceFile]:
    """Yields the files that match a glob pattern, sorted. Raises UserError if there are none."""
    with contextlib.suppress(RuntimeError):  # an unknown ~NAME
        pattern = str(Path(pattern).expanduser())
    matches = sorted(map(Path, _matches(pattern)))
    if not matches:
        raise UserError(f"{pattern}: matches no file; use the path of a file or a glob pattern")
    # Several links may lead to one file; its first name counts.
    paths = sorted({path.resolve(): path for path in reversed(matches) if is_regular(path)}.values())
    if not paths:
        raise UserError(f"{pattern}: matches only folders, devices or pipes; use the path of regular files")
    fixed = next((parent for parent in Path(pattern).parents if not glob.has_magic(str(parent))), Path())
    yield from source_files(paths, fixed, progress)


def source_files(paths: Sequence[Path], folder: Path, progress: Progress) -> Iterator[SourceFile]:
    """Yields files that lie in a folder, in the given order; `progress` is called with the fraction of all of them."""
    sizes = [path.stat().st_size for path in paths]
    *starts, total = accumulate(sizes, initial=0)

    def report(start: int, done: int) -> None:
        progress((start + done) / max(1, total))

    for path, start, size in zip(paths, starts, sizes, strict=True):
        yield SourceFile(path, path.relative_to(folder).as_posix(), size, partial(report, start))


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

"""Files at URLs for tests: uploads, and services that fail."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bert_jax.data import remote
from bert_jax.data.remote import Url


def upload(folder: Path, url: str) -> str:
    """Copies a folder to a URL."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            Url(f"{url}/{path.relative_to(folder).as_posix()}").upload(path)
    return url


def change(url: str, edit: Callable[[bytes], bytes]) -> None:
    """Changes a file at a URL."""
    files, key = remote.file_system(url)
    files.pipe_file(key, edit(files.cat_file(key)))


@contextmanager
def requests_of(url: str, fail: Callable[[int], bool] = lambda number: False) -> Iterator[list[tuple[str, int, int]]]:
    """Notes which ranges are read (key, start, stop); those whose number `fail` chooses fail, as in a network that does."""
    files = type(remote.file_system(url)[0])
    is_async = hasattr(files, "_cat_file")
    name = "_cat_file" if is_async else "cat_file"
    original, noted = getattr(files, name), list[tuple[str, int, int]]()

    def note(path: str, start: int | None, end: int | None) -> None:
        noted.append((path, start, end))
        if fail(len(noted) - 1):
            raise ConnectionResetError("Connection reset by peer")

    async def read_async(self: Any, path: str, start: int | None = None, end: int | None = None, **options: Any) -> Any:
        note(path, start, end)
        return await original(self, path, start=start, end=end, **options)

    def read(self: Any, path: str, start: int | None = None, end: int | None = None, **options: Any) -> Any:
        note(path, start, end)
        return original(self, path, start=start, end=end, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, name, read_async if is_async else read)
        patch.setattr(remote, "PAUSES", (0.0, 0.0, 0.0))
        files.clear_instance_cache()  # instances hold the method that they had at their start
        yield noted
    files.clear_instance_cache()

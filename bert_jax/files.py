"""Files that are there only when everything is in them."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def whole_file(path: Path, binary: bool = False) -> Iterator[Any]:
    """A file to write, of UTF-8 or of bytes, that takes its name at the end; after an error the name is as it was before."""
    draft = path.with_name(f"{path.name}.draft{os.getpid()}")  # of this process: several may write the same file
    try:
        with draft.open("wb") if binary else draft.open("w", encoding="utf-8") as file:
            yield file
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def same_path(one: str, other: str) -> bool:
    """Whether two paths lead to the same place."""
    return Path(one).resolve() == Path(other).resolve()


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, whole or not at all."""
    with whole_file(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

"""Decodes text files: UTF-8, lines of limited length, no NUL bytes, which only binary files have."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from bert_jax.errors import UserError
from bert_jax.files import read_lines


def decoded(content: bytes, name: object, place: str = "", offset: int = 0) -> str:
    """Decodes UTF-8; for messages, `place` is e.g. " in line 3,", and `offset` the bytes of the file before `content`.

    Raises:
      UserError: it is not UTF-8, or contains NUL bytes.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        at = offset + error.start
        raise UserError(f"{name}: not UTF-8{place} at byte {at}; convert it, e.g. with iconv") from None
    if (nul := content.find(0)) >= 0:
        cause = "probably UTF-16, an archive or another binary file"
        raise UserError(f"{name}: contains a NUL byte{place} at byte {offset + nul}: {cause}; convert or unpack it")
    return text


def decoded_lines(lines: Iterable[bytes], name: object) -> Iterator[str]:
    """Yields lines as text, without a byte-order mark. Raises UserError as `decoded`, and if lines end with CR alone."""
    before = 0
    for number, content in enumerate(lines, 1):
        line = decoded(content, name, f" in line {number},", before)
        if number == 1:
            line = line.removeprefix("\ufeff")
            if "\n" not in line and "\r" in line.rstrip("\r"):
                raise UserError(f"{name}: its lines end with CR alone; convert it to LF")
        before += len(content)
        yield line


def read_text_lines(path: Path, remedy: str = "check the path") -> Iterator[str]:
    """Yields the lines of a file as text, with line ends. Raises UserError as `read_lines` and `decoded_lines`."""
    yield from decoded_lines(read_lines(path, remedy), path)

"""Lines of text files: UTF-8, of limited length, and without the NUL bytes that only other kinds of files have."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from bert_jax import files
from bert_jax.errors import UserError


def decoded(content: bytes, name: object, place: str = "", offset: int = 0) -> str:
    """Returns text.

    Args:
      content: the bytes.
      name: of the file, for messages.
      place: of `content` in it, for messages, as " in line 3,".
      offset: bytes before `content`.

    Raises:
      UserError: it is not UTF-8, or holds NUL bytes.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        at = offset + error.start
        raise UserError(f"{name}: not UTF-8{place} at byte {at}; convert it, for instance with iconv") from None
    if "\0" in text:
        raise UserError(
            f"{name}: holds a NUL byte{place} at byte {offset + content.index(0)}: probably UTF-16, an archive or another "
            "binary file; convert or unpack it"
        )
    return text


def decoded_lines(lines: Iterable[bytes], name: object) -> Iterator[str]:
    """Yields lines as text, without a byte-order mark. Raises UserError as `decoded`, and if they end with CR alone."""
    before = 0
    for number, content in enumerate(lines, 1):
        line = decoded(content, name, f" in line {number},", before)
        if number == 1:
            line = line.removeprefix("\ufeff")
            if "\n" not in line and "\r" in line.rstrip("\r"):
                raise UserError(f"{name}: its lines end with CR alone; convert it to LF")
        before += len(content)
        yield line


def read_lines(path: Path, remedy: str = "name a file that is there") -> Iterator[str]:
    """Yields the lines of a file with their ends. Raises UserError as `files.read_lines` and `decoded_lines`."""
    yield from decoded_lines(files.read_lines(path, remedy), path)

"""Files at URLs, such as s3://bucket/corpus/corpus.json: everything that fsspec opens, read in ranges.

A request that fails is repeated with growing pauses, and what has been read before is kept. The packages of the services are
an extra (requirements-cloud.txt), which is imported when the first URL is opened.
"""

import functools
import glob
import io
import logging
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

from bert_jax.errors import UserError
from bert_jax.files import GET_AGAIN, LARGEST_FILE

logger = logging.getLogger(__name__)
# Seconds before a request is repeated, after the attempts that the client of a service makes itself: services that are
# overloaded, and network links that are replaced, mostly recover within half a minute.
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
# Bytes that are read at a time. They double while a file is read from front to back, so that a request takes longer than the
# 50 to 100 ms until it is answered; a jump begins anew, because readers of tables jump from one column to another.
_FIRST_STEP, _LARGEST_STEP = 1 << 16, 1 << 23
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HOW_TO_SIGN_IN = (
    "set the credentials that the service's own tools use, such as AWS_PROFILE or GOOGLE_APPLICATION_CREDENTIALS"
)
_Result = TypeVar("_Result")


def is_url(name: str) -> bool:
    """Checks whether a name is a URL, and not a path."""
    return bool(_SCHEME.match(name))


class Url:
    """A file or folder at a URL, with the methods of a pathlib.Path that are needed here, and ranged reads."""

    def __init__(self, text: str, size: int | None = None):
        """Takes the size of a file in bytes where it is known."""
        self._text, self._size = text.rstrip("/"), size

    def __str__(self) -> str:
        return self._text

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self._text}/{name}")

    @property
    def name(self) -> str:
        return PurePosixPath(self._text).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self._text).suffix

    @functools.cached_property
    def size(self) -> int:
        """Bytes of the file. Raises UserError as `repeated`."""
        return self._request(lambda files, key: files.info(key)["size"]) if self._size is None else self._size

    def exists(self) -> bool:
        """Checks whether it is a file or folder. Raises UserError as `repeated`."""
        try:
            self._request(lambda files, key: files.info(key))
        except MissingError:
            return False
        return True

    def stamp(self) -> str:
        """Returns a text that changes when the file does, as the service tells it. Raises UserError as `repeated`."""
        return str(self._request(lambda files, key: files.ukey(key)))

    def sizes(self) -> dict[str, int]:
        """Returns the sizes in bytes of the files in this folder, by name; none if it is missing.

        Raises:
          UserError: as `repeated`, but for a folder that is missing.
        """
        try:
            entries = self._request(lambda files, key: files.ls(key, detail=True))
        except MissingError:
            return {}
        return {PurePosixPath(entry["name"]).name: entry["size"] for entry in entries if entry["type"] == "file"}

    def matches(self) -> list[tuple["Url", str]]:
        """Returns the files that this URL matches as a glob pattern, sorted as paths are, with the names after its fixed part.

        Raises:
          UserError: as `repeated`.
        """
        files, key = file_system(str(self))
        pattern = PurePosixPath(key)
        fixed = next((parent for parent in pattern.parents if not glob.has_magic(str(parent))), PurePosixPath())
        entries = self._request(lambda files, key: files.glob(key, detail=True))
        if not entries:  # a bucket or folder that is missing has its own message
            self._request(lambda files, _: files.ls(str(fixed)))
        paths = sorted(PurePosixPath(path) for path, entry in entries.items() if entry["type"] == "file")
        urls = [Url(files.unstrip_protocol(str(path)), entries[str(path)]["size"]) for path in paths]
        return [(url, path.relative_to(fixed).as_posix()) for url, path in zip(urls, paths, strict=True)]

    def read(self, start: int, stop: int) -> bytes:
        """Returns bytes [start, stop) of the file. Raises UserError as `repeated`."""

        def content(files: Any, key: str) -> bytes:
            data = files.cat_file(key, start=start, end=stop)
            if len(data) < stop - start:
                raise OSError(f"{len(data):,} bytes instead of {stop - start:,}")
            return data

        return self._request(content) if stop > start else b""

    def read_all(self) -> bytes:
        """Returns the contents of a small file. Raises UserError as `repeated`, or for more than `LARGEST_FILE` bytes."""
        content = self._request(lambda files, key: files.cat_file(key, start=0, end=LARGEST_FILE + 1))
        if len(content) > LARGEST_FILE:
            raise UserError(f"{self}: larger than {LARGEST_FILE:,} bytes; {GET_AGAIN}")
        return content

    def ranges(self, names: Sequence[str], starts: Sequence[int], stops: Sequence[int]) -> list[bytes | Exception]:
        """Returns ranges of files in this folder, or why each could not be read, after a single attempt; all at once."""
        files, key = file_system(str(self))
        try:
            return files.cat_ranges([f"{key}/{name}" for name in names], [*starts], [*stops], on_error="return")
        except Exception as error:  # services raise errors of many kinds
            return [error] * len(names)

    def open(self) -> BinaryIO:
        """Opens the file for reading, at any place. Raises UserError as `repeated`, and so do its methods."""
        return io.BufferedReader(_File(self), _FIRST_STEP)

    def upload(self, path: Path) -> None:
        """Writes the file from a local one. Raises UserError as `repeated`."""
        self._request(lambda files, key: files.put_file(str(path), key))

    def _request(self, request: Callable[[Any, str], _Result]) -> _Result:
        files, key = file_system(str(self))
        files.invalidate_cache()  # of listings, which others may have changed
        return repeated(lambda: request(files, key), str(self))


class MissingError(UserError):
    """No such file, folder or bucket."""


def file_system(url: str) -> tuple[Any, str]:
    """Returns an fsspec.AbstractFileSystem, the same one in a thread, and the key of the file in it.

    Raises:
      UserError: a package is missing, or no service has this protocol.
    """
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(url)
    except ImportError as error:
        remedy = "pip install -r requirements-cloud.txt, or bert_jax[cloud]"
        raise UserError(f"{url}: needs a package that is not installed ({error}); {remedy}") from None
    except ValueError as error:
        raise UserError(f"{url}: {error}; use s3://, gs://, hf:// or another protocol of fsspec") from None


def repeated(request: Callable[[], _Result], place: str) -> _Result:
    """Returns the result of a request, which is repeated after `PAUSES` if the network or the service fails.

    Raises:
      MissingError: the file, folder or bucket is missing.
      UserError: there are no credentials or permissions, or all attempts failed.
    """
    for pause in (*PAUSES, None):
        try:
            return request()
        except Exception as error:  # services raise errors of many kinds
            raise_if_permanent(place, error)
            if pause is None:
                raise gave_up(place, error) from None
            logger.warning("%s: %s; trying again in %g s", place, reason_of(error), pause)
            time.sleep(pause)
    raise AssertionError("unreachable")


def raise_if_permanent(place: str, error: Exception) -> None:
    """Raises UserError if it is of no use to repeat the request that raised an error."""
    if isinstance(error, UserError):
        raise error
    name = type(error).__name__
    if isinstance(error, FileNotFoundError):
        raise MissingError(f"{place}: missing ({reason_of(error)}); check its name") from None
    if isinstance(error, PermissionError) or "Credentials" in name or "Token" in name:
        raise UserError(f"{place}: no access ({reason_of(error)}); {_HOW_TO_SIGN_IN}") from None
    # A name that no bucket can have (botocore's ParamValidationError), or a folder in the place of a file.
    if isinstance(error, ValueError | IsADirectoryError | NotADirectoryError) or "Validation" in name:
        raise UserError(f"{place}: cannot be read ({reason_of(error)}); check its name") from None


def gave_up(place: str, error: Exception) -> UserError:
    """Returns the error for a request that failed each time."""
    failed = f"{place}: {reason_of(error)}, {len(PAUSES) + 1} times"
    return UserError(f"{failed}; check the network and the service, and start the command again")


def reason_of(error: Exception) -> str:
    """Returns the message of an error of a service, shortened."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class _File(io.RawIOBase):
    """Reads a file at a URL in ranges, ahead of what is asked for."""

    def __init__(self, url: Url):
        self._url, self._size = url, url.size
        self._position = self._start = 0  # where the next byte is read; where the bytes that were read ahead begin
        self._ahead, self._step = b"", _FIRST_STEP

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        offset = self._position - self._start
        if not 0 <= offset < len(self._ahead):
            is_next = self._ahead and offset == len(self._ahead)
            self._step = min(2 * self._step, _LARGEST_STEP) if is_next else _FIRST_STEP
            stop = min(self._size, self._position + max(self._step, len(buffer)))
            self._ahead = self._url.read(self._position, stop)
            self._start, offset = self._position, 0
        part = memoryview(self._ahead)[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

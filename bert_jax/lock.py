"""A lock on a folder that is being written; it names its holder, and the kernel releases it when that process ends."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bert_jax.errors import UserError
from bert_jax.files import is_regular

logger = logging.getLogger(__name__)
LOCK = "lock"
_MOMENT = 0.05  # seconds; `holder` has the lock for much less
_IS_HELD = {errno.EWOULDBLOCK, errno.EACCES}
# Errors of file systems without locks: some network file systems, and mounts with `nolock`.
_CANNOT = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextlib.contextmanager
def locked(folder: Path, remedy: str) -> Iterator[Callable[[], None]]:
    """Holds the lock of a folder, an flock on its file `lock`; creates the folder if it is missing.

    The file stays, empty, when the lock is released: a process that had already opened a removed file would hold a lock
    that others do not see. On NFS, Linux makes it a lock for all hosts.

    Yields:
      A function that raises UserError if the folder has been removed or replaced.

    Raises:
      UserError: another process holds it (the message ends with `remedy`), or `lock` is not a regular file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{path}: not a regular file; remove it")
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b", buffering=0) as file:
        _take(file.fileno(), folder, remedy)
        with contextlib.suppress(OSError):  # a full disk: the lock has no name
            file.truncate(0)
            os.pwrite(file.fileno(), _holder().encode(errors="replace"), 0)
        try:
            yield lambda: _check(file.fileno(), path)
        finally:
            with contextlib.suppress(OSError):
                file.truncate(0)


def holder(folder: Path) -> str:
    """Returns who holds the lock of a folder; '' if nobody does."""
    path = folder / LOCK
    if not is_regular(path):
        return ""
    with path.open("rb") as file:
        if not (name := file.read(500).decode(errors="replace")):
            return ""
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # held, or on a file system without locks, where the name is all that is known
            return name
    return ""  # its process was killed


def _holder() -> str:
    command, start = Path(sys.argv[0]).stem, time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()} ({command}, since {start})"


def _take(descriptor: int, folder: Path, remedy: str) -> None:
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_MOMENT)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _CANNOT:
            logger.warning("%s: cannot be locked (%s); do not start two runs in it", folder, error.strerror)
        elif error.errno in _IS_HELD:
            name = os.pread(descriptor, 500, 0).decode(errors="replace") or "another process"
            raise UserError(f"{folder}: in use by {name}; {remedy}") from None
        else:
            raise OSError(error.errno, error.strerror, str(folder / LOCK)) from None


def _check(descriptor: int, path: Path) -> None:
    try:
        is_same = os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except OSError:
        is_same = False
    if not is_same:
        problem = "removed or replaced while this process was writing to it"
        raise UserError(f"{path.parent}: {problem}; restore it and start again")

"""Corpora at URLs: a local folder with copies of their small files, and the upload of a prepared corpus.

Local files are in ~/.cache/bert_jax/remote. They may be deleted whenever no program uses them.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bert_jax.data.corpus.index import INDEX_FILE, TOKENIZER_FOLDER
from bert_jax.data.remote import MissingError, Url, is_url
from bert_jax.errors import UserError
from bert_jax.files import whole_file
from bert_jax.lock import locked

CACHE = Path("~/.cache/bert_jax/remote")
_Summary = TypeVar("_Summary")


def local_folder(name: str | Path) -> Path:
    """Returns the folder of a corpus; for a URL one with copies of all its files but the shards.

    It is another folder when the corpus at the URL has changed.

    Raises:
      UserError: there is no finished corpus at the URL, or it cannot be read.
    """
    if not is_url(str(name)):
        return Path(name)
    url = Url(str(name))
    index = _index_at(url)
    if index is None:
        raise UserError(f"{url}: no finished corpus ({INDEX_FILE} is missing); make it with tools/prepare_corpus.py")
    folder = _cache_of("corpora", url, index)
    if not (folder / INDEX_FILE).exists():
        (folder / TOKENIZER_FOLDER).mkdir(parents=True, exist_ok=True)
        arrays = [file for file in url.sizes() if file.endswith(".npy")]
        tokenizer = [f"{TOKENIZER_FOLDER}/{file}" for file in (url / TOKENIZER_FOLDER).sizes()]
        for file in (*tokenizer, *arrays, INDEX_FILE):  # the last one marks that all are there
            with (url / file).open() as source, whole_file(folder / file, binary=True) as target:
                shutil.copyfileobj(source, target)
    return folder


def prepare_at(url: Url, prepare: Callable[[Path], _Summary]) -> _Summary:
    """Prepares a corpus in a local folder, uploads it, and removes the folder; resumes what was interrupted.

    Args:
      url: where the corpus is to be.
      prepare: prepares it in a folder, resumes that, or, in the folder of a finished corpus, checks its settings.

    Raises:
      UserError: as `prepare`; other files are at the URL, it cannot be written, or another process of this machine is preparing
        a corpus there.
    """
    folder = _cache_of("prepared", url, b"")
    with locked(folder.parent, "wait for it, stop it, or choose another URL"):
        return _prepare_and_upload(url, folder, prepare)


def _prepare_and_upload(url: Url, folder: Path, prepare: Callable[[Path], _Summary]) -> _Summary:
    index = _index_at(url)
    if index is None and not folder.exists() and url.sizes():
        raise UserError(f"{url}: holds other files; choose a new folder")
    if index is not None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with whole_file(folder / INDEX_FILE, binary=True) as file:
            file.write(index)
    try:
        summary = prepare(folder)
    except UserError as error:
        raise UserError(str(error).replace(str(folder), str(url))) from None
    if index is None:
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        for file in (*(file for file in files if file != INDEX_FILE), INDEX_FILE):
            (url / file).upload(folder / file)
    shutil.rmtree(folder.parent)
    return summary


def _index_at(url: Url) -> bytes | None:
    try:
        return (url / INDEX_FILE).read_all()
    except MissingError:
        return None


def _cache_of(kind: str, url: Url, content: bytes) -> Path:
    """Returns the local folder for a URL with some content; it has the name of the corpus."""
    identity = hashlib.blake2b(f"{url}\n".encode() + content, digest_size=8).hexdigest()
    return CACHE.expanduser() / kind / identity / (url.name or "corpus")

"""Checks the flag --corpus of tools."""

from pathlib import Path

from bert_jax.data.corpus.index import INDEX_FILE
from bert_jax.data.remote import is_url
from bert_jax.errors import UserError


def check_corpus_flag(folder: str) -> None:
    """Raises UserError if the folder in --corpus holds no finished corpus."""
    if not is_url(folder) and not (Path(folder) / INDEX_FILE).is_file():
        raise UserError(f"--corpus={folder}: no finished corpus; use a folder made by tools/prepare_corpus.py")

"""Text in the place of a corpus: it is prepared when a run needs it, into a cache folder named by what it is made of."""

import hashlib
import json
import platform
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from bert_jax.cli.progress import Progress
from bert_jax.data.corpus.index import FORMAT_VERSION, INDEX_FILE, TOKENIZER_FOLDER, read_index
from bert_jax.data.corpus.remote_folder import local_folder
from bert_jax.data.sources.base import SOURCE_KINDS
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.parallel import hosts
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks.base import load_tokenizer, origin_tokenizer

CACHE = Path("~/.cache/bert_jax/corpora")
_WITH_SHARE = re.compile(r"([0-9.e-]+:)(.*)", re.DOTALL)  # an entry of a mixture


def is_source(name: str) -> bool:
    """Checks whether an option names a source of text, such as text:GLOB, and not a folder."""
    return name.partition(":")[0] in SOURCE_KINDS and not Path(name).exists()


def prepare_sources(values: Any, workdir: Path) -> None:
    """Puts prepared corpora in the place of the sources that the config of a pretraining run names.

    Args:
      values: a ConfigDict, which is changed.
      workdir: of the run.

    Raises:
      UserError: there is no tokenizer yet, too few documents to hold any out, or as `read_documents` and `prepare`.
    """
    if values.get("task") != "pretraining":
        return
    prepared: dict[str, str] = {}

    def replaced(name: str, is_evaluated: bool) -> str:
        share, entry = match.groups() if (match := _WITH_SHARE.fullmatch(name)) else ("", name)
        if not is_source(entry):
            return name
        if entry not in prepared:
            prepared[entry] = str(cached_corpus(entry, tokenizer_for(values, workdir, entry)))
        if is_evaluated and "validation" not in read_index(Path(prepared[entry]))["splits"]:
            remedy = "prepare it with tools/prepare_corpus.py and a larger --held_out, and name the folder"
            raise UserError(f"{entry}: too few documents, so that none is held out to evaluate on; {remedy}")
        return share + prepared[entry]

    for section in (values.data, *values.get("phases", ())):
        for option in ("corpus", "mixture", "eval_corpora"):
            value = section.get(option)
            if isinstance(value, str):
                section[option] = replaced(value, option != "mixture")
            elif value:
                section[option] = tuple(replaced(name, option != "mixture") for name in value)


def tokenizer_for(values: Any, workdir: Path, source: str) -> Tokenizer:
    """Returns the tokenizer of a run: its own, that of `data.tokenizer` or of `init_from`, or that of `data.corpus`.

    Raises:
      UserError: there is none.
    """
    if run_folder.exists(workdir):
        return load_tokenizer(workdir)
    if values.data.tokenizer or values.init_from:
        return origin_tokenizer(Path(values.data.tokenizer or values.init_from).expanduser())
    corpus = local_folder(values.data.corpus or "none")
    if (corpus / TOKENIZER_FOLDER).is_dir():
        return Tokenizer.load(corpus / TOKENIZER_FOLDER)
    remedy = "train one with tools/train_tokenizer.py, and set --config.data.tokenizer to its folder"
    raise UserError(f"{source}: is text, and there is no tokenizer for it; {remedy}")


def cached_corpus(source: str, tokenizer: Tokenizer) -> Path:
    """Returns the folder of a corpus with the documents of a source, which is prepared unless it has been before.

    The first process of a job prepares it.

    Raises:
      UserError: as `fingerprint`, `read_documents` and `prepare`, or the folder is not on a disk that all hosts share.
    """
    # Lazy imports: they take half a second, for TFDS.
    from bert_jax.data.corpus.prepare import prepare
    from bert_jax.data.sources.documents import read_documents

    folder = CACHE.expanduser() / f"{source.partition(':')[0]}-{fingerprint(source, tokenizer)}"
    if hosts.is_first() and not (folder / INDEX_FILE).exists():
        with Progress(f"preparing {source}") as progress:
            documents = read_documents(source, progress=progress.reach)
            prepare(documents, tokenizer, folder, source=source, progress=progress.count)
    hosts.meet(f"corpus {folder.name}")
    if not (folder / INDEX_FILE).exists():
        raise UserError(
            f"{source}: was prepared on the first host alone; prepare it on a shared disk with tools/prepare_corpus.py"
        )
    return folder


def fingerprint(source: str, tokenizer: Tokenizer) -> str:
    """Returns a hash of a source, of the names, sizes and times of its files, of the tokenizer and of the format.

    Raises:
      UserError: the files of the source are not known.
    """
    content = [source, [*stamps(source)], tokenizer.fingerprint, FORMAT_VERSION]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


def stamps(source: str) -> Iterator[tuple[Any, ...]]:
    """Yields name, size and stamp of the files of a source, or versions of the packages of python-docs."""
    from bert_jax.data.sources.documents import Source
    from bert_jax.data.sources.files import absolute, stamp

    if source.partition(":")[0] == "python-docs":
        yield (platform.python_version(),)
        yield from sorted((package.name, package.version) for package in metadata.distributions())
        return
    for file in Source(source).files():
        yield absolute(file.path), file.size, stamp(file.path)

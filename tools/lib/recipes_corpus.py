"""Prepares the tokenizer and the corpora of a sheet of tools/compare_recipes.py."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from ml_collections import ConfigDict

from bert_jax.data.corpus.arrays import checksums_file, lengths_file
from bert_jax.data.corpus.block_files import first_blocks
from bert_jax.data.corpus.format import Corpus
from bert_jax.data.corpus.index import INDEX_FILE, TOKENIZER_FOLDER, read_index
from bert_jax.data.tokenizer.files import holds_tokenizer
from bert_jax.files import write_json
from bert_jax.tasks import base as tasks
from tools.cramming import check_held_out, run_tool

# Fields of corpus.json, and of its shards, that say what the corpus holds.
_HASHED = (
    *("format", "tokenizer", "held_out_fraction", "shard_megabytes"),
    *("block_tokens", "vocab_size", "special_ids", "skipped_documents"),
)
_HASHED_OF_SHARDS = ("file", "bytes", "tokens", "number")


def prepare_corpora(source: dict[str, Any], text: str, workdir: Path) -> dict[str, Path]:
    """Returns the folders of the corpora by name, 'whole' and 'repeated', which are made unless they are there.

    Args:
      source: the section `corpus` of the sheet.
      text: its source, with the folder of the data.
      workdir: holds the tokenizer and the corpora.

    Raises:
      UserError: the text cannot be read, or is too short for a held-out set.
    """
    tokenizer, whole, repeated = (workdir / name for name in ("tokenizer", "corpus", "corpus_repeated"))
    if not (whole / INDEX_FILE).exists():
        workdir.mkdir(parents=True, exist_ok=True)
        if not holds_tokenizer(tokenizer):
            size = f"--vocab_size={source['vocab_size']}"
            run_tool("train_tokenizer.py", f"--source={text}", size, f"--output={tokenizer}")
        run_tool(
            "prepare_corpus.py",
            f"--source={text}",
            f"--tokenizer={tokenizer}",
            f"--output={whole}",
            f"--held_out={source['held_out']}",
            f"--shard_megabytes={source['shard_megabytes']}",
            f"--workers={len(os.sched_getaffinity(0))}",
        )
        check_held_out(whole, "use a source with more documents")
    if not (repeated / INDEX_FILE).exists():
        write_part(whole, repeated, source["repeated_every"])
    return {"whole": whole, "repeated": repeated}


def corpus_hash(corpus: Path) -> str:
    """Returns a hash of the tokenizer and the size of each shard: the same for the same text on another machine."""
    index: dict[str, Any] = dict(read_index(corpus))
    content = {name: index[name] for name in _HASHED}
    content["splits"] = {
        name: {
            "documents": split["documents"],
            "shards": [{field: shard[field] for field in _HASHED_OF_SHARDS} for shard in split["shards"]],
        }
        for name, split in index["splits"].items()
    }
    return hashlib.blake2b(msgspec.json.encode(content, order="deterministic"), digest_size=8).hexdigest()


def padding_share(values: ConfigDict, workdir: Path) -> float:
    """Returns the share of padding among the tokens of the first 50 batches of a pretraining run."""
    training = tasks.create(values, workdir).training
    phase = training.phases(1)[0]
    rows = np.arange(phase.shape.rows)
    shares = [training.batch(phase, rows, step)["attention_mask"].mean() for step in range(50)]
    return round(1.0 - float(np.mean(shares)), 4)


def write_part(corpus: Path, part: Path, every: int) -> None:
    """Writes a corpus with every so many-th shard of another one, and with all of its held-out text."""
    index = read_index(corpus)
    index.pop("statistics", None)  # they are those of the whole corpus
    train = index["splits"]["train"]
    train["shards"] = train["shards"][::every]
    shutil.copytree(corpus / TOKENIZER_FOLDER, part / TOKENIZER_FOLDER, dirs_exist_ok=True)
    for split in index["splits"].values():
        for shard in split["shards"]:
            shutil.copyfile(corpus / shard["file"], part / shard["file"])
    whole = Corpus.open(corpus)
    lengths = np.concatenate([whole.document_lengths(number) for number in range(len(whole.shard_tokens))[::every]])
    np.save(part / lengths_file("train"), lengths)
    shutil.copyfile(corpus / lengths_file("validation"), part / lengths_file("validation"))
    if (stored := corpus / checksums_file("train")).exists():  # corpora of older versions have none
        of_shards = np.split(np.load(stored), first_blocks(whole.shard_tokens)[1:-1])
        np.save(part / checksums_file("train"), np.concatenate(of_shards[::every]))
        shutil.copyfile(corpus / checksums_file("validation"), part / checksums_file("validation"))
    train["documents"] = len(lengths)
    write_json(part / INDEX_FILE, index)  # last: it marks a finished corpus

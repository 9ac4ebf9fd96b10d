"""Puts together the contents of corpus.json from the descriptions of its shards."""

import hashlib
from collections import Counter
from typing import Any

import msgspec
import tensorflow_datasets as tfds
from tensorflow_datasets.core.naming import ShardedFileTemplate

from bert_jax.data.corpus.cleaning import REASONS
from bert_jax.data.corpus.index import BLOCK_TOKENS, Statistics, role_ids
from bert_jax.data.corpus.shards import SPLITS, ShardInfo
from bert_jax.data.corpus.statistics import add_counts
from bert_jax.data.tokenizer.tokenizer import Tokenizer

DATASET_NAME, FILE_FORMAT = "bert_corpus", tfds.core.FileFormat.ARRAY_RECORD


def corpus_index(
    shards: list[ShardInfo], dropped: Counter[str], bad: Counter[str], settings: dict[str, Any], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Returns the contents of corpus.json.

    Args:
      shards: descriptions, by number.
      dropped: numbers of documents that cleaning dropped, by reason.
      bad: numbers of records that could not be read, by kind.
      settings: of the preparation.
      tokenizer: of the corpus.
    """
    splits = {}
    for split in SPLITS:
        # Shards with only empty documents have no file.
        members = [shard for shard in shards if shard["split"] == split and shard["tokens"]]
        template = ShardedFileTemplate(
            data_dir="", dataset_name=DATASET_NAME, split=split, filetype_suffix=FILE_FORMAT.file_suffix
        )
        entries = []
        for position, shard in enumerate(members):
            file = template.relative_filepath(shard_index=position, num_shards=len(members))
            entries.append(
                {
                    "file": str(file),
                    "bytes": shard["bytes"],
                    "tokens": shard["tokens"],
                    "number": shard["number"],
                    "documents": shard["documents"],
                    "packed_rows": shard["packed_rows"],
                }
            )
        if members:
            splits[split] = {"documents": sum(shard["documents"] for shard in members), "shards": entries}
    return {
        **settings,
        "block_tokens": BLOCK_TOKENS,
        "vocab_size": tokenizer.vocab_size,
        "special_ids": role_ids(tokenizer),
        "skipped_documents": sum(shard["skipped"] for shard in shards),
        "splits": splits,
        "statistics": _statistics(shards, dropped, bad, settings),
    }


def _statistics(
    shards: list[ShardInfo], dropped: Counter[str], bad: Counter[str], settings: dict[str, Any]
) -> Statistics:
    content = [settings | {"source": ""}, [[shard["split"], shard["digest"]] for shard in shards]]
    texts = {split: [shard["text"] for shard in shards if shard["split"] == split] for split in SPLITS}
    statistics: Statistics = {
        "documents_read": sum(shard["documents"] + shard["skipped"] for shard in shards) + dropped.total(),
        "dropped": {reason: dropped[reason] for reason in REASONS if dropped[reason]},
        "splits": {split: add_counts(of_split) for split, of_split in texts.items() if of_split},
        "fingerprint": hashlib.blake2b(msgspec.json.encode(content, order="deterministic"), digest_size=8).hexdigest(),
    }
    if bad:
        statistics["bad_records"] = dict(sorted(bad.items()))
    return statistics


def nothing_left(statistics: dict[str, Any]) -> str:
    """Says why a corpus would hold no document."""
    if not statistics["documents_read"] and "bad_records" in statistics:
        return f"no record can be read ({sum(statistics['bad_records'].values())} skipped); check the source"
    if not statistics["documents_read"]:
        return "holds no documents; check the source"
    if not statistics["dropped"]:
        return f"all documents are empty ({statistics['documents_read']} skipped); check the source"
    counts = ", ".join(f"{count} {reason}" for reason, count in statistics["dropped"].items())
    return f"all documents are empty or dropped ({counts}); check the source and the options of cleaning"

"""Writes the documents of a prepared corpus as static instances: pairs of segments, masked once, in TFRecord files.

    python tools/write_instances.py --corpus=corpora/mine --output=corpora/mine-128 --sequence_length=128 --shards=16
    python -m bert_jax.pretrain --config=configs/bert_base.py --workdir=runs/x --config.data.corpus=corpora/mine-128 \\
        --config.data.masking=static --config.phases='()'

The rules are those of google-research/bert create_pretraining_data.py, and so are the features, which its run_pretraining.py
reads. A document is walked from its start, --dupe_factor times with other random numbers; the held-out documents once. Options
have the defaults of the original. Different from it: the random numbers of a pair depend on the seed, its document and the
walk alone; sentences are those of the corpus; an instance goes to a random file instead of the next one.

A run on the corpus itself (data.masking=dynamic) makes much the same pairs in every epoch anew, and needs no files. What
differs there (bert_jax/data/pretraining/pairs.py): a pair begins at a window instead of where the pair before it ended; each
pair is short with its own probability, not all of a document; short pairs are cut to their target, not only to the sequence
length; random text comes from a document with a probability in proportion to its length; a lone sentence is cut in two where
there is no other document.

Several runs with other seeds may write at the same time, each to its own folder; their files may then be put into one, under
other names.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from bert_jax import random_numbers
from bert_jax.cli.main import run_command
from bert_jax.cli.progress import Progress
from bert_jax.data.corpus.format import Corpus
from bert_jax.data.corpus.index import TOKENIZER_FOLDER, read_index
from bert_jax.data.joining import HostBatch, join_rows
from bert_jax.data.pretraining.instances import encode_instance
from bert_jax.data.tfrecord import RecordFile, write_record
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.objectives import mlm
from tools.lib.corpus_flag import check_corpus_flag
from tools.lib.document_pairs import Documents, Pair, pairs_of_document

BATCH = 1024  # pairs that are masked at once

logger = logging.getLogger(__name__)


class Settings(NamedTuple):
    """How instances are made."""

    sequence_length: int
    short_seq_prob: float
    mlm: mlm.Options
    seed: int


class Summary(NamedTuple):
    """What was written of a split."""

    instances: int
    random_next: int  # instances whose second segment is of a random document

    def __str__(self) -> str:
        return (
            f"{self.instances:,} instances, {self.random_next / self.instances:.1%} of them with a random next segment"
        )


def define_flags() -> None:
    flags.DEFINE_string("corpus", None, "folder made by tools/prepare_corpus.py", required=True)
    flags.DEFINE_string("output", None, "new folder for the instances", required=True)
    flags.DEFINE_integer("sequence_length", 128, "tokens of an instance, special tokens included", lower_bound=8)
    flags.DEFINE_integer("max_predictions", 20, "most predictions of an instance", lower_bound=1)
    flags.DEFINE_float("mlm_probability", 0.15, "share of the tokens predicted")
    flags.DEFINE_enum("masking", "token", ["token", "word"], "what is predicted: single tokens or whole words")
    flags.DEFINE_float("short_seq_prob", 0.1, "share of the documents in shorter pairs", 0.0, 1.0)
    flags.DEFINE_integer("dupe_factor", 10, "times that each document is walked", lower_bound=1)
    flags.DEFINE_integer("seed", 12345, "seed of all random numbers", lower_bound=0)
    flags.DEFINE_integer("shards", 1, "number of files of training instances", 1, 10_000)


def main() -> None:
    values = flags.FLAGS
    check_corpus_flag(values.corpus)
    try:
        masks = mlm.Options(
            masking=values.masking, mlm_probability=values.mlm_probability, max_predictions=values.max_predictions
        )
    except ValueError as error:
        raise UserError(f"--mlm_probability: {error}") from None
    wanted = round(values.mlm_probability * values.sequence_length)
    if values.max_predictions < wanted:
        share = values.max_predictions / values.sequence_length
        message = "--max_predictions=%d are %.1f%% of a full instance; for %.0f%% set it to %d"
        logger.warning(message, values.max_predictions, 100 * share, 100 * values.mlm_probability, wanted)
    settings = Settings(values.sequence_length, values.short_seq_prob, masks, values.seed)
    for split, summary in write(
        values.corpus, Path(values.output), settings, values.dupe_factor, values.shards
    ).items():
        print(f"{values.output}: {split}: {summary}")


def write(corpus: str, output: Path, settings: Settings, dupe_factor: int, shards: int) -> dict[str, Summary]:
    """Writes the instances of all splits of a corpus to a new folder; after an error there is no folder.

    Raises:
      UserError: the folder exists, or the corpus is damaged.
    """
    if output.exists():
        raise UserError(f"{output}: exists; choose a new folder")
    tokenizer = Tokenizer.load(Path(corpus) / TOKENIZER_FOLDER)
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    summaries = {}
    with (
        tempfile.TemporaryDirectory(prefix=f"{output.name}.", dir=output.absolute().parent) as draft,
        Progress("writing", of="instances") as progress,
    ):
        folder, parts = Path(draft) / "instances", Path(draft) / "parts"
        folder.mkdir()
        for split in read_index(Path(corpus))["splits"]:
            passes, count = (1, 1) if split == "validation" else (dupe_factor, shards)
            opened = Corpus.open(corpus, split)
            opened.check_tokenizer(tokenizer, "copy or prepare the corpus again")
            pairs = numbered_pairs(Documents(opened), tokenizer, settings, passes, progress)
            parts.mkdir()
            names = [f"{split}-{number:05d}-of-{count:05d}.tfrecord" for number in range(count)]
            summaries[split] = write_parts(pairs, tokenizer, settings, [parts / name for name in names])
            for number, name in enumerate(names):
                rng = np.random.default_rng([settings.seed, number])
                write_shuffled(RecordFile(parts / name), folder / name, rng)
                (parts / name).unlink()
            parts.rmdir()
        tokenizer.save(folder / TOKENIZER_FOLDER)
        folder.rename(output)
    return summaries


def numbered_pairs(
    documents: Documents, tokenizer: Tokenizer, settings: Settings, passes: int, progress: Progress
) -> Iterator[tuple[int, Pair]]:
    """Yields the pairs of all documents, walked `passes` times, with their numbers from 0."""
    max_tokens = settings.sequence_length - tokenizer.num_special_tokens(2)
    count = 0
    for walk in range(passes):
        for document in range(len(documents)):
            rng = np.random.default_rng([settings.seed, walk, document])
            for pair in pairs_of_document(documents, document, max_tokens, settings.short_seq_prob, rng):
                yield count, pair
                count += 1
                progress.count()
            progress.reach((walk * len(documents) + document + 1) / (passes * len(documents)))


def write_parts(
    pairs: Iterator[tuple[int, Pair]], tokenizer: Tokenizer, settings: Settings, paths: list[Path]
) -> Summary:
    """Masks the pairs and writes each of them to a random one of the files."""
    objective = mlm.Objective(settings.mlm, tokenizer)
    instances, random_next = 0, 0
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        while numbered := list(islice(pairs, BATCH)):
            keys = random_numbers.row_keys(settings.seed, np.array([number for number, _ in numbered]))
            batch = masked([pair for _, pair in numbered], tokenizer, settings, objective, keys)
            targets = random_numbers.integers(random_numbers.fold_in(keys, "file"), 0, len(files))
            for row, target in enumerate(targets.tolist()):
                write_record(files[target], encode_instance(batch, row))
            instances += len(numbered)
            random_next += int(batch["nsp_labels"].sum())
    return Summary(instances, random_next)


def masked(
    pairs: list[Pair], tokenizer: Tokenizer, settings: Settings, objective: mlm.Objective, keys: np.ndarray
) -> HostBatch:
    """Returns the pairs as rows with masks and labels, the predictions padded to `max_predictions`."""
    sides = [[pair.a for pair in pairs], [pair.b for pair in pairs]]
    segments = [(np.concatenate(side), np.array([*map(len, side)])) for side in sides]
    batch = join_rows(tokenizer, settings.sequence_length, *segments)
    batch = objective.corrupt(batch, random_numbers.fold_in(keys, "mlm"))
    for name in ("mlm_positions", "mlm_labels", "mlm_weights"):
        batch[name] = np.pad(batch[name], ((0, 0), (0, settings.mlm.max_predictions - batch[name].shape[1])))
    return batch | {"nsp_labels": np.array([pair.is_random_next for pair in pairs], np.int32)}


def write_shuffled(records: RecordFile, path: Path, rng: np.random.Generator) -> None:
    """Writes the records of a file to another one in random order, so that readers need not shuffle much."""
    with path.open("wb") as file:
        for number in rng.permutation(len(records)):
            write_record(file, records.read(number))


if __name__ == "__main__":
    define_flags()
    run_command(main)

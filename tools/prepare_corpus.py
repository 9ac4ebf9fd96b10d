"""Prepares a corpus for pretraining from the documents of a source: a TFDS dataset of token blocks.

    python tools/prepare_corpus.py --source=python-docs --tokenizer=runs/tokenizer --output=runs/corpus --workers=2

If interrupted, the same command continues. With --runner=beam the workers are those of a cluster.
"""

from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from bert_jax.cli.main import run_command
from bert_jax.cli.progress import Progress
from bert_jax.data.corpus.beam import pipeline_options, run_on_beam
from bert_jax.data.corpus.cleaning import Cleaning
from bert_jax.data.corpus.format import check_whole
from bert_jax.data.corpus.prepare import Summary, prepare, prepare_distributed
from bert_jax.data.corpus.remote_folder import prepare_at
from bert_jax.data.remote import Url, is_url
from bert_jax.data.sources.base import BadRecords
from bert_jax.data.sources.documents import FORMS, Source
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError

_SOURCE = flags.DEFINE_string("source", None, FORMS, required=True)
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "folder of a tokenizer, run or model", required=True)
_OUTPUT = flags.DEFINE_string(
    "output", None, "folder for the corpus, or a URL such as s3://bucket/corpus", required=True
)
_WORKERS = flags.DEFINE_integer("workers", 1, "number of processes of --runner=local", lower_bound=1)
_RUNNER = flags.DEFINE_enum("runner", "local", ["local", "beam"], "what runs the workers: this machine, or Apache Beam")
_BEAM_OPTIONS = flags.DEFINE_string(
    "beam_options", "", "Beam's pipeline options, such as '--runner=DaskRunner --dask_client_address=HOST:8786'"
)
_SKIP_BAD_RECORDS = flags.DEFINE_integer(
    "skip_bad_records",
    0,
    "skip and count up to so many records that cannot be read; one more is an error",
    lower_bound=0,
)
_DOCUMENT = flags.DEFINE_enum("document", "blank-line", ["blank-line", "file"], "what ends a document of a text source")
_HELD_OUT = flags.DEFINE_float("held_out", 0.02, "fraction of the documents in the split `validation`", 0.0, 1.0)
_SHARD_MEGABYTES = flags.DEFINE_float("shard_megabytes", 16.0, "text per shard, in megabytes", lower_bound=1e-6)

# Cleaning, in the order in which it is done.
_UNICODE = flags.DEFINE_enum("unicode", "none", ["none", "NFC", "NFKC"], "Unicode normal form of the text")
_MIN_CHARACTERS = flags.DEFINE_integer("min_characters", 0, "drop documents with fewer characters", lower_bound=0)
_DROP_REGEX = flags.DEFINE_multi_string("drop_regex", [], "drop documents in which this regex matches; repeatable")
_LANGUAGES = flags.DEFINE_list("languages", [], "drop documents in other languages than these, such as en,de")
_DROP_DUPLICATES = flags.DEFINE_bool("drop_duplicates", False, "drop documents with the same text as an earlier one")
_DROP_NEAR_DUPLICATES = flags.DEFINE_float(
    "drop_near_duplicates", 0.0, "drop documents about as similar as this to an earlier one, such as 0.8; 0: keep them"
)


def main() -> None:
    from bert_jax.tasks import base as tasks  # here, because it imports jax, which worker processes do without

    tokenizer = tasks.origin_tokenizer(Path(_TOKENIZER.value).expanduser())
    cleaning = Cleaning(
        unicode=_UNICODE.value,
        min_characters=_MIN_CHARACTERS.value,
        drop_regex=tuple(_DROP_REGEX.value),
        languages=tuple(sorted(set(_LANGUAGES.value))),
        drop_duplicates=_DROP_DUPLICATES.value,
        drop_near_duplicates=_DROP_NEAR_DUPLICATES.value,
    )
    output = _OUTPUT.value
    prepare_in = partial(_prepare, tokenizer, cleaning)
    summary = prepare_at(Url(output), prepare_in) if is_url(output) else prepare_in(Path(output))
    if summary.already:
        check_whole(output)
    print(
        f"{_OUTPUT.value}: {'already finished, ' if summary.already else ''}{summary.documents:,} documents "
        f"({summary.skipped:,} empty ones skipped), {summary.tokens:,} tokens in {summary.shards} shards"
    )
    for what, counts in (("dropped", summary.dropped), ("records that could not be read", summary.bad_records)):
        if counts:
            print(f"{what}: " + ", ".join(f"{count:,} {reason}" for reason, count in counts.items()))


def _prepare(tokenizer: Tokenizer, cleaning: Cleaning, output: Path) -> Summary:
    source, bad = Source(_SOURCE.value, _DOCUMENT.value), BadRecords(_SKIP_BAD_RECORDS.value)
    is_local = _RUNNER.value == "local"
    if is_local and _BEAM_OPTIONS.value:
        raise UserError("--beam_options: are for --runner=beam; set that as well")
    if not is_local and _WORKERS.value > 1:
        raise UserError("--workers: is for --runner=local; set the workers of Beam in --beam_options")
    with Progress("reading" if is_local else "deciding") as progress:
        options: dict[str, Any] = {
            "held_out_fraction": _HELD_OUT.value,
            "shard_megabytes": _SHARD_MEGABYTES.value,
            "cleaning": cleaning,
            "bad": bad,
            "progress": progress.count,
        }
        if is_local:
            documents = source.documents(source.files(progress.reach), bad, _WORKERS.value)
            description = source.description
            return prepare(documents, tokenizer, output, source=description, workers=_WORKERS.value, **options)
        pipeline_options(_BEAM_OPTIONS.value)  # to fail before anything is read
        return prepare_distributed(source, tokenizer, output, partial(run_on_beam, _BEAM_OPTIONS.value), **options)


if __name__ == "__main__":
    run_command(main)

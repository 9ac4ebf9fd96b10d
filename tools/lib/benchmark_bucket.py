"""The rows of the suite `input` on a corpus in a bucket: an S3 server on this machine, and nothing of it read before."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.data.corpus.remote_folder import local_folder
from bert_jax.data.remote import Url
from bert_jax.errors import UserError
from tools.lib.benchmark_rows import Row, rate, ratios
from tools.lib.benchmark_settings import Settings
from tools.lib.benchmark_sides import Side, take_turns
from tools.lib.s3_server import s3_server

BUCKET, LENGTH, SECONDS = "benchmark", 128, 30.0
BATCHES, QUICK_BATCHES = 20, 2  # of a turn


def bucket_rows(
    settings: Settings, corpus: str, batch_size: int, stream_of: Callable[[str, str, int], Any]
) -> Iterator[Row]:
    """Measures masked windows of a corpus that is read for the first time, against the same from files."""
    name, batches = "masked windows, 128: first batches", QUICK_BATCHES if settings.quick else BATCHES
    try:
        with corpus_in_bucket(corpus) as url:
            places = {f"{name} from files": corpus, f"{name} from S3": url}
            sides = {side: first_batches(place, batch_size, batches, stream_of) for side, place in places.items()}
            (files, of_files), (bucket, of_bucket) = take_turns(sides, settings.turns, SECONDS).items()
    except UserError as error:
        yield Row(f"{name} from S3", note=str(error))
        return
    amount = batch_size * LENGTH / 1e6
    yield rate(files, "M tokens/s", amount, of_files)
    yield rate(bucket, "M tokens/s", amount, of_bucket, base="from files", ratios=ratios(of_files, of_bucket))


def first_batches(place: str, batch_size: int, batches: int, stream_of: Callable[[str, str, int], Any]) -> Side:
    """Returns a turn that measures seconds for each of the first batches that a run reads, without its start."""

    def turn() -> float:
        (local_folder(place) / "records-train").unlink(missing_ok=True)
        stream, rows = stream_of(place, "masked windows", LENGTH), np.arange(batch_size)
        start = time.perf_counter()
        for step in range(batches):
            stream.batch(step * batch_size + rows)
        return (time.perf_counter() - start) / batches

    return turn


@contextmanager
def corpus_in_bucket(corpus: str) -> Iterator[str]:
    """Yields the URL of a copy of a corpus on an S3 server; what is kept of it is in a temporary folder."""
    home = os.environ.get("HOME")
    with tempfile.TemporaryDirectory() as folder, s3_server(BUCKET):
        files = [path for path in Path(corpus).rglob("*") if path.is_file()]
        for path in files:
            Url(f"s3://{BUCKET}/corpus/{path.relative_to(corpus).as_posix()}").upload(path)
        os.environ["HOME"] = folder
        try:
            yield f"s3://{BUCKET}/corpus"
        finally:
            os.environ.pop("HOME")
            os.environ |= {"HOME": home} if home is not None else {}

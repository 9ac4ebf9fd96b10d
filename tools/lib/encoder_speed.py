"""Measures how fast encoders read texts, side by side."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from bert_jax.library import load

ROUNDS = 7


def texts_per_second(folders: Sequence[Path], texts: Sequence[str]) -> list[float]:
    """Returns how many texts a second the encoder of each run reads, tokenization included: the median of `ROUNDS`.

    The encoders take turns, so that whatever else the machine does slows down all of them.
    """
    encoders = [load(folder) for folder in folders]
    seconds: list[list[float]] = [[] for _ in encoders]
    for number in range(ROUNDS + 1):
        for encoder, of_encoder in zip(encoders, seconds, strict=True):
            start = time.perf_counter()
            encoder.encode(texts)
            if number:  # the first round compiles
                of_encoder.append(time.perf_counter() - start)
    return [len(texts) / statistics.median(of_encoder) for of_encoder in seconds]

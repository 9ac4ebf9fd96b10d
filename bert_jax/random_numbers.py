"""Counter-based random numbers on the host: each is a function of a key and a position, whoever asks, in whatever batch.

The numbers of a key are a stream of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators"): a mixing function of the key plus a multiple of a constant. Keys are made by the same function, so the streams of
two keys are unrelated. Shapes: n keys, L positions.
"""

import math
import zlib

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # the golden ratio; this and the multipliers below are of the paper's figure 16
_FEISTEL_ROUNDS = 6


def row_keys(seed: int, *counters: np.ndarray) -> np.ndarray:
    """Returns a key for each row, uint64 [n], from integers [n] such as its epoch and its index."""
    keys = _mixed(np.array([seed & (1 << 64) - 1], np.uint64))
    for counter in counters:
        keys = bits(keys, counter)
    return keys


def fold_in(keys: np.ndarray, purpose: str) -> np.ndarray:
    """Returns other keys [n] for what is named, so that two uses of a row's numbers are independent."""
    return _mixed(keys ^ _mixed(np.array([zlib.crc32(purpose.encode())], np.uint64)))


def bits(keys: np.ndarray, positions: np.ndarray | int) -> np.ndarray:
    """Returns random bits uint64 of keys and positions that broadcast: [n, 1] and [L] give [n, L]."""
    return _mixed(keys + (np.atleast_1d(positions).astype(np.uint64) + np.uint64(1)) * _GAMMA)


def uniform(keys: np.ndarray, positions: np.ndarray | int) -> np.ndarray:
    """Returns random floats float64 in [0, 1), multiples of 2^-53, of keys and positions that broadcast."""
    return (bits(keys, positions) >> np.uint64(11)) * 2.0**-53


def integers(keys: np.ndarray, positions: np.ndarray | int, bound: np.ndarray | int) -> np.ndarray:
    """Returns random integers int64 in [0, bound), of keys, positions and bounds (below 2^53) that broadcast."""
    return (uniform(keys, positions) * bound).astype(np.int64)


def coin_flips(keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns how many of `counts` fair coins show heads, int64 [n]: binomial numbers."""
    words = np.arange(-(-int(counts.max(initial=0)) // 64))
    used = np.clip(counts[:, None] - 64 * words, 0, 64)  # bits of each word that are coins
    shift = np.uint64(64) - np.maximum(used, 1).astype(np.uint64)
    coins = np.where(used > 0, bits(keys[:, None], words) >> shift, np.uint64(0))
    return np.bitwise_count(coins).sum(axis=1, dtype=np.int64)


def permuted(keys: np.ndarray, positions: np.ndarray, size: int) -> np.ndarray:
    """Returns the images int64 [n] of positions in [0, size) under the permutations of this range that the keys choose.

    A Feistel network over a rectangle that is hardly larger than the range; what falls outside goes through again (Black and
    Rogaway 2002, "Ciphers with arbitrary finite domains"). Nothing is stored, whatever the size (below 2^53).
    """
    width = math.isqrt(size - 1) + 1
    height = -(-size // width)
    result = np.array(positions, np.int64)
    outside = np.arange(len(result))
    while len(outside):
        (rows, columns), own = np.divmod(result[outside], width), keys[outside]
        for step in range(0, _FEISTEL_ROUNDS, 2):
            rows = (rows + integers(own, columns * _FEISTEL_ROUNDS + step, height)) % height
            columns = (columns + integers(own, rows * _FEISTEL_ROUNDS + step + 1, width)) % width
        result[outside] = rows * width + columns
        outside = outside[result[outside] >= size]
    return result


def _mixed(z: np.ndarray) -> np.ndarray:
    """Mixes numbers in place: every bit of the result depends on every bit of the argument."""
    shifted = np.empty_like(z)
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z ^= np.right_shift(z, np.uint64(shift), out=shifted)
        z *= np.uint64(multiplier)
    z ^= np.right_shift(z, np.uint64(31), out=shifted)
    return z

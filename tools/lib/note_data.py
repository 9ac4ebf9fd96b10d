"""Draws the data of tools/technical_note.py: samples of the training sets of GLUE, and probing tasks made of sentences."""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bert_jax.data.datasets import glue
from bert_jax.errors import UserError
from bert_jax.files import write_text

TRAIN_SENTENCES, HELD_OUT_SENTENCES = 4_000, 1_000  # of each probing task
NUM_WORDS, NUM_RANGES = 20, 6
_FEWEST_WORDS = 5  # of a sentence; the training set of SST-2 is mostly shorter phrases


class Example(NamedTuple):
    text: str
    label: str


def sample_lines(source: Path, task: str, size: int, seed: int, output: Path) -> None:
    """Writes `output`/TASK with `size` random lines of the training file; the other files are copies.

    Raises:
      UserError: a file is missing, or has fewer lines.
    """
    folder = source / task
    if not (folder / "train.tsv").is_file():
        raise UserError(f"{folder}/train.tsv: no such file; set --data to the folder with glue/")
    has_header = "train" not in glue.task_of(task).no_header
    lines = (folder / "train.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    header, rows = lines[:has_header], lines[has_header:]
    if len(rows) < size:
        raise UserError(f"{folder}/train.tsv: has {len(rows)} lines, not {size}; get the official file")
    chosen = np.random.default_rng(seed).choice(len(rows), size, replace=False)
    (output / task).mkdir(parents=True, exist_ok=True)
    for name in ("dev.tsv", "test.tsv"):
        shutil.copyfile(folder / name, output / task / name)
    write_text(output / task / "train.tsv", "".join([*header, *(rows[number] for number in sorted(chosen))]))


def write_probes(source: Path, seed: int, output: Path) -> None:
    """Writes `output`/PROBE_SEED/{train,dev}.jsonl for the probes of configs/sheets/first_token.py, from SST-2's sentences."""
    rows = glue.read_split(source, glue.task_of("SST-2"), "train")
    sentences = [Example(row.texts[0], row.label) for row in rows if len(row.texts[0].split()) >= _FEWEST_WORDS]
    rng = np.random.default_rng(seed)
    probes = {
        "sentiment": sentences,
        "length": lengths(sentences),
        "word": words(sentences),
        "order": orders(sentences, rng),
    }
    for name, examples in probes.items():
        needed = TRAIN_SENTENCES + HELD_OUT_SENTENCES
        if len(examples) < needed:
            raise UserError(f"{source}/SST-2: too few sentences for the probe {name!r}; get the official files")
        chosen = [examples[number] for number in rng.choice(len(examples), needed, replace=False)]
        folder = output / f"{name}_{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "train.jsonl", _json_lines(chosen[:TRAIN_SENTENCES]))
        write_text(folder / "dev.jsonl", _json_lines(chosen[TRAIN_SENTENCES:]))


def lengths(sentences: Sequence[Example]) -> list[Example]:
    """Labels sentences with the range that their number of words is in, of `NUM_RANGES` about equally frequent ones."""
    counts = np.array([len(sentence.text.split()) for sentence in sentences])
    borders = np.quantile(counts, np.linspace(0, 1, NUM_RANGES + 1)[1:-1])
    ranges = np.searchsorted(borders, counts, side="left")
    return [Example(text, str(number)) for (text, _), number in zip(sentences, ranges.tolist(), strict=True)]


def words(sentences: Sequence[Example]) -> list[Example]:
    """Returns the sentences that contain exactly one of `NUM_WORDS` words, with that word as the label.

    They are words of at least four letters around the hundredth in frequency: none of them is rare, and each is a token.
    """
    counts: dict[str, int] = {}
    for text, _ in sentences:
        for word in set(text.split()):
            if word.isalpha() and len(word) >= 4:
                counts[word] = counts.get(word, 0) + 1
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    first = max(0, min(90, len(frequent) - NUM_WORDS))
    wanted = set(frequent[first : first + NUM_WORDS])
    contained = [(text, wanted.intersection(text.split())) for text, _ in sentences]
    return [Example(text, *held) for text, held in contained if len(held) == 1]


def orders(sentences: Sequence[Example], rng: np.random.Generator) -> list[Example]:
    """Exchanges two adjacent words in half of the sentences, and labels them 'exchanged' or 'original'."""
    examples = []
    for text, _ in sentences:
        tokens = text.split()
        places = [place for place in range(len(tokens) - 1) if tokens[place] != tokens[place + 1]]
        is_exchanged = bool(places) and rng.random() < 0.5
        if is_exchanged:
            place = int(rng.choice(places))
            tokens[place : place + 2] = tokens[place + 1], tokens[place]
        examples.append(Example(" ".join(tokens), "exchanged" if is_exchanged else "original"))
    return examples


def _json_lines(examples: Iterable[Example]) -> str:
    return "".join(json.dumps(example._asdict(), ensure_ascii=False) + "\n" for example in examples)

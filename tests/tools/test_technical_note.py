"""What the technical note is measured with: samples of training sets, probing tasks, and plots of the results."""

import csv
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bert_jax.data.datasets import glue
from bert_jax.errors import UserError
from configs.sheets import first_token, labels
from tests.data.datasets.test_glue import write_split
from tests.running import ROOT, assert_one_line, run
from tools.experiment_sheet import cells_of
from tools.lib import note_data, note_plots
from tools.lib.note_data import Example


def command(*flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / "technical_note.py"), *flags]


@pytest.mark.parametrize("task", ["SST-2", "CoLA"])
def test_samples_are_lines_of_the_training_file(task, tmp_path):
    for split in ("train", "dev", "test"):
        write_split(tmp_path, task, split, count=40)
    for seed in (0, 0, 1):
        note_data.sample_lines(tmp_path, task, 12, seed, tmp_path / f"12_{seed}")
    whole, first, other = (
        glue.read_split(folder, glue.task_of(task), "train")
        for folder in (tmp_path, tmp_path / "12_0", tmp_path / "12_1")
    )
    texts = [row.texts for row in whole]
    places = [texts.index(row.texts) for row in first]
    assert len(first) == len(other) == 12 and places == sorted(places)
    assert [row.texts for row in first] != [row.texts for row in other]
    dev = [glue.read_split(folder, glue.task_of(task), "dev") for folder in (tmp_path, tmp_path / "12_0")]
    assert [row.texts for row in dev[0]] == [row.texts for row in dev[1]]
    with pytest.raises(UserError, match="has 40 lines, not 41"):
        note_data.sample_lines(tmp_path, task, 41, 0, tmp_path / "41_0")
    with pytest.raises(UserError, match=r"train\.tsv: no such file"):
        note_data.sample_lines(tmp_path / "none", task, 1, 0, tmp_path / "1_0")


def test_lengths_are_equally_frequent():
    rng = np.random.default_rng(0)
    sentences = [Example(" ".join(["word"] * int(count)), "1") for count in rng.integers(5, 65, 3000)]
    labelled = note_data.lengths(sentences)
    counts = Counter(example.label for example in labelled)
    assert len(counts) == note_data.NUM_RANGES and min(counts.values()) > 400
    lengths = {label: [len(e.text.split()) for e in labelled if e.label == label] for label in counts}
    for shorter, longer in zip("01234", "12345", strict=True):
        assert max(lengths[shorter]) < min(lengths[longer])


def test_words_are_held_once():
    names = [f"{a}{b}word" for a in "abcdefghij" for b in "abcdefghijkl"]
    rng = np.random.default_rng(0)
    shares = np.arange(len(names), 0, -1.0)
    sentences = [Example(" ".join(rng.choice(names, 6, p=shares / shares.sum())), "0") for _ in range(2000)]
    labelled = note_data.words(sentences)
    wanted = {example.label for example in labelled}
    assert len(wanted) == note_data.NUM_WORDS
    for text, label in labelled:
        assert wanted.intersection(text.split()) == {label}


def test_orders_exchange_two_neighbours():
    sentences = [Example("the old ship left the harbour", "1"), Example("so so so so so", "0")] * 200
    labelled = note_data.orders(sentences, np.random.default_rng(0))
    counts = Counter(example.label for example in labelled)
    assert 60 < counts["exchanged"] < 140, "about half of those that can be"
    for before, after in zip(sentences, labelled, strict=True):
        changed = [a != b for a, b in zip(before.text.split(), after.text.split(), strict=True)]
        assert sum(changed) == (2 if after.label == "exchanged" else 0)
        assert Counter(before.text.split()) == Counter(after.text.split())
        if after.label == "exchanged":
            first = changed.index(True)
            assert changed[first + 1], "neighbours"


def test_probes_are_files_of_the_grid(tmp_path, monkeypatch, tiny_bert):
    monkeypatch.setattr(note_data, "TRAIN_SENTENCES", 20)
    monkeypatch.setattr(note_data, "HELD_OUT_SENTENCES", 5)
    (tmp_path / "SST-2").mkdir()
    rng = np.random.default_rng(0)
    names = [f"{a}{b}word" for a in "abcdefghij" for b in "abcdefghijkl"]
    rows = [f"{' '.join(rng.choice(names, 9))}\t{number % 2}" for number in range(400)]
    (tmp_path / "SST-2" / "train.tsv").write_text("\n".join(["sentence\tlabel", *rows, "too short\t1"]) + "\n")
    grid = first_token.get_config().to_dict() | {"encoders": f"before={tiny_bert}", "data": str(tmp_path / "probes")}
    for seed in range(grid["seeds"]):
        note_data.write_probes(tmp_path, seed, tmp_path / "probes")
    cells = list(cells_of(grid))
    assert {cell.seed for cell in cells} == {0, 1, 2}
    assert {(cell.way, cell.pooling) for cell in cells} == {
        ("first token", "first"),
        ("mean", "mean"),
        ("words", "mean"),
    }
    for cell in cells:
        for option, count in (("data.train", 20), ("data.validation", 5)):
            lines = [json.loads(line) for line in Path(cell.settings[option]).read_text().splitlines()]
            assert len(lines) == count and all(line["text"] and line["label"] for line in lines)
    monkeypatch.setattr(note_data, "TRAIN_SENTENCES", 2000)
    with pytest.raises(UserError, match="too few sentences for the probe 'sentiment'"):
        note_data.write_probes(tmp_path, 0, tmp_path / "others")


def test_the_grid_of_labels_has_a_sample_for_each_seed(tmp_path, tiny_bert):
    grid = labels.get_config().to_dict() | {"encoders": f"encoder={tiny_bert}", "data": str(tmp_path)}
    cells = list(cells_of(grid))
    assert len(cells) == 3 * 4 * 6
    for cell in cells:
        assert cell.settings["data.dir"].endswith(f"_{cell.seed}")
    words = {cell.settings["data.dir"] for cell in cells if cell.way == "words" and cell.task == "SST-2, 100 labels"}
    assert words == {f"{tmp_path}/100_{seed}" for seed in range(3)}


def write_sheet(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "encoder", "way", "seed", "score", "value", "seconds"])
        writer.writerows(rows)


def test_plots(tmp_path):
    tasks = labels.get_config().tasks
    rows = [
        (name, "encoder", way, seed, score, 0.4 + 0.1 * seed, 1)
        for name, task in tasks.items()
        for way in note_plots.WAYS
        for seed in range(3)
        for score in (task["score"], "other")
    ]
    write_sheet(tmp_path / "labels.csv", rows)
    probes = [
        (probe, encoder, way, seed, "accuracy", 0.123, 1)
        for probe in first_token.PROBES
        for encoder, ways in (
            ("before", ("first token", "mean")),
            ("after", ("first token", "mean")),
            ("-", ("words",)),
        )
        for way in ways
        for seed in range(3)
    ]
    with pytest.raises(UserError, match=r"first_token\.csv: no such file"):
        list(note_plots.write(tmp_path))
    write_sheet(tmp_path / "first_token.csv", probes)
    done = run(command(f"--records={tmp_path}"))
    names = [path.split("/")[-1] for path in done.stdout.split()]
    assert names == ["labels_SST-2.svg", "labels_CoLA.svg", "first_token.svg"]
    texts = [(tmp_path / name).read_text() for name in names]
    assert "10,000" in texts[0] and "8,551" in texts[1] and texts[2].count(".12<") == 5 * 4
    assert all("from scratch" in text for text in texts[:2])


@pytest.mark.parametrize(
    "flags, part",
    [(["--encoder=x"], "--data or --workdir is missing"), (["--records=nothing"], "labels.csv: no such file")],
)
def test_mistakes_are_one_line(flags, part):
    assert_one_line(run(command(*flags), code=2).stderr, part)

"""GLUE's TensorFlow datasets: TFDS's own code prepares them from official files, and our rows are those of the files."""

import sys
from pathlib import Path

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds

from bert_jax.data.datasets import glue
from bert_jax.errors import UserError
from tests.data.datasets.test_glue import write_split
from tests.running import run

ROWS = 9  # enough for TFDS to store them in another order


class Downloads:
    """In the place of TFDS's downloads: official files in a folder. MRPC is made from the files of its authors."""

    downloaded_size = 0

    def __init__(self, folder: Path):
        self.folder = folder

    def download_and_extract(self, url: str) -> Path:
        return self.folder

    def download(self, urls: str | dict[str, str]) -> Path | dict[str, Path]:
        return glue.find_split(self.folder, glue.AX, "test") if isinstance(urls, str) else self._mrpc()

    def _mrpc(self) -> dict[str, Path]:
        lines = {}
        for split in ("train", "dev", "test"):
            rows = glue.read_split(self.folder, glue.TASKS["MRPC"], split)
            lines[split] = [
                "\t".join([row.label or "0", f"{split}{number}", "0", *row.texts]) for number, row in enumerate(rows)
            ]
        header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
        contents = {
            "train": ["\ufeff" + header, *lines["train"][:2], *lines["dev"], *lines["train"][2:]],
            "test": [header, *lines["test"]],
            "dev_ids": [f"dev{number}\t0" for number in range(ROWS)],
        }
        for name, content in contents.items():
            (self.folder / f"msr_{name}.txt").write_text("\n".join(content) + "\n")
        return {name: self.folder / f"msr_{name}.txt" for name in contents}


def download_from(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(tfds.core.DatasetBuilder, "_make_download_manager", lambda *_, **__: Downloads(folder))


@pytest.fixture
def official(tmp_path, monkeypatch) -> Path:
    """The folder of official files from which TFDS prepares here what it would download."""
    folder = tmp_path / "official"
    folder.mkdir()
    download_from(folder, monkeypatch)
    return folder


def write_task(folder: Path, name: str) -> list[str]:
    """All files of a task; the names of their splits."""
    task = glue.TASKS[name]
    splits = ["train", *task.held_out, *(split for split, _ in task.submissions)]
    for split in splits:
        write_split(folder, name, split, ROWS)
    return splits


def one_line(match: str, data_dir, name: str = "CoLA", split: str = "train") -> None:
    with pytest.raises(UserError, match=match) as error:
        glue.read_split(f"tfds:{data_dir}", glue.TASKS[name], split)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", glue.TASKS)
def test_the_rows_are_those_of_the_official_files(name, official, tmp_path):
    task = glue.TASKS[name]
    for split in write_task(official, name):
        theirs = glue.read_split(official, task, split)
        ours = glue.read_split(f"tfds:{tmp_path / 'data'}", task, split)
        assert len(ours) == ROWS and [row.texts for row in ours] == [row.texts for row in theirs]
        if split.startswith("test"):
            assert [row[:3] for row in ours] == [row[:3] for row in theirs], "the leaderboard's indices, and no labels"
        elif task.labels:
            assert [row.label for row in ours] == [row.label for row in theirs]
        else:
            assert [float(row.label) for row in ours] == [float(row.label) for row in theirs]


def test_the_diagnostic_set(official, tmp_path):
    rows = "".join(f"{number}\tthe ship {number}\tthe river\n" for number in range(ROWS))
    (official / "diagnostic.tsv").write_text(f"index\tsentence1\tsentence2\n{rows}")
    ours, theirs = (glue.read_split(folder, glue.AX, "test") for folder in (f"tfds:{tmp_path}", official))
    assert [row[:3] for row in ours] == [row[:3] for row in theirs]


def test_without_tensorflow_from_the_usual_folder(official, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    write_task(official, "STS-B")
    glue.read_split(f"tfds:{tmp_path / 'data'}", glue.TASKS["STS-B"], "train")
    code = """
from importlib.machinery import PathFinder
found = PathFinder.find_spec  # without them, as where requirements.txt alone is installed
PathFinder.find_spec = lambda name, *rest: None if name in ("tensorflow", "h5py") else found(name, *rest)
from bert_jax.data.datasets import glue
for row in glue.read_split("tfds", glue.TASKS["STS-B"], "train"):
    print(row.label)
import tensorflow_datasets
print(tensorflow_datasets.builder_cls("glue").name, "is there to prepare what is missing")
"""
    *labels, last = run([sys.executable, "-c", code]).stdout.splitlines()
    assert labels == [f"{number}.25" for number in range(ROWS)]
    assert last == "glue is there to prepare what is missing"


def test_what_cannot_be_prepared(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise requests.ConnectionError("dl.fbaipublicfiles.com:\nName or service not known")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_network)
    one_line(
        rf"^glue/cola: not in {tmp_path}, and cannot be prepared here \(dl.fbaipublicfiles.com: Name or "
        r"service not known\); prepare it on a machine with a network \(tfds build glue/cola ",
        tmp_path,
    )


def test_what_was_prepared_otherwise(official, tmp_path):
    write_task(official, "CoLA")
    glue.read_split(f"tfds:{tmp_path}", glue.TASKS["CoLA"], "train")
    folder = tmp_path / "glue" / "cola" / "2.0.0"
    one_line(f"^{folder}: has no split 'validation_x', only train, validation, test; ", tmp_path, split="dev_x")

    names = folder / "label.labels.txt"
    features = folder / "features.json"
    names.write_text("no\nperhaps\nyes\n")
    one_line(f"^{folder}: has the labels no, perhaps, yes instead of 0, 1; it is not from GLUE", tmp_path)
    names.write_text("unacceptable\nacceptable\n")
    before = features.read_text()
    features.write_text(before.replace('"sentence"', '"words"'))
    one_line(f"^{folder}: has no feature 'sentence', only idx, label, words; it is not from GLUE", tmp_path)
    features.write_text(before)

    (shard,) = folder.glob("glue-train*")
    shard.write_bytes(shard.read_bytes()[:-100])
    one_line(rf"^{folder}: damaged \(.*\); remove the folder", tmp_path)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    one_line(f"^{folder}: stored as tfrecord, which needs TensorFlow; use another folder", tmp_path)
    info.write_text("{")
    one_line(rf"^glue/cola: not in {tmp_path}, and cannot be prepared here \(", tmp_path)


def test_the_tasks_there_are(official):
    write_split(official, "CoLA", "train")
    write_split(official, "RTE", "train")
    assert glue.available(official) == glue.available(str(official)) == ["CoLA", "RTE"]
    assert glue.available("tfds") == glue.available("tfds:gs://bucket/data") == list(glue.TASKS)
    assert glue.available(official / "CoLA") == []


@pytest.mark.real
@pytest.mark.parametrize("name", ["CoLA", "SST-2", "STS-B", "RTE", "WNLI"])
def test_official_files(name, real_data, tmp_path, monkeypatch):
    download_from(real_data / "glue", monkeypatch)
    task = glue.TASKS[name]
    for split in ("train", "dev"):
        theirs = glue.read_split(real_data / "glue", task, split)
        ours = glue.read_split(f"tfds:{tmp_path}", task, split)
        assert [row.texts for row in ours] == [row.texts for row in theirs]
        assert task.labels or [float(row.label) for row in ours] == [np.float32(row.label) for row in theirs]
        assert not task.labels or [row.label for row in ours] == [row.label for row in theirs]

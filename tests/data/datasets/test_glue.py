"""GLUE's official files, as they differ from each other, and what is wrong with others."""

import pytest

from bert_jax.data.datasets import glue
from bert_jax.errors import UserError

HEADS = {  # of train or dev, and of test
    "CoLA": ("", "index\tsentence"),
    "SST-2": ("sentence\tlabel", "index\tsentence"),
    "MRPC": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "index\t#1 ID\t#2 ID\t#1 String\t#2 String",
    ),
    "STS-B": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2",
    ),
    "QQP": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "id\tquestion1\tquestion2"),
    "MNLI": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
        "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
        "sentence2_parse\tsentence1\tsentence2",
    ),
    "QNLI": ("index\tquestion\tsentence\tlabel", "index\tquestion\tsentence"),
    "RTE": ("index\tsentence1\tsentence2\tlabel", "index\tsentence1\tsentence2"),
    "WNLI": ("index\tsentence1\tsentence2\tlabel", "index\tsentence1\tsentence2"),
}


def write_split(folder, name: str, split: str, count: int = 4) -> None:
    """Rows in the official columns: texts with quotes in them, labels in turn, and line ends of Windows in RTE."""
    task = glue.TASKS[name]
    header = HEADS[name][split.startswith("test")]
    columns = header.lstrip("\ufeff").split("\t") if header else list(task.columns)
    lines = [header] if header else []
    for number in range(count):
        label = task.labels[number % len(task.labels)] if task.labels else f"{number}.250"
        values = {task.label: label, columns[0]: str(number)} | {task.label: label}
        values |= {text: f'the "quiet {text} {number}' for text in task.texts}
        lines.append("\t".join(values.get(column, "x") for column in columns))
    (folder / name).mkdir(exist_ok=True)
    end = "\r\n" if name == "RTE" else "\n"
    (folder / name / f"{split}.tsv").write_bytes((end.join(lines) + end).encode())


def test_a_test_set_of_another_task(tmp_path):
    write_split(tmp_path, "RTE", "test")
    assert len(glue.read_split(tmp_path / "RTE", glue.TASKS["RTE"], "test")) == 4
    with pytest.raises(UserError, match=r"RTE/WNLI/test\.tsv: no such file"):
        glue.read_split(tmp_path / "RTE", glue.TASKS["WNLI"], "test")


@pytest.mark.parametrize("name", glue.TASKS)
def test_every_format(name, tmp_path):
    task = glue.TASKS[name]
    splits = ["train", *task.held_out]
    for split in [*splits, *(split for split, _ in task.submissions)]:
        write_split(tmp_path, name, split)
    for split in splits:
        rows = glue.read_split(tmp_path, task, split)
        assert len(rows) == 4 and rows[3].texts == tuple(f'the "quiet {text} 3' for text in task.texts)
        assert [row.label for row in rows[:2]] == (list(task.labels[:2]) or ["0.250", "1.250"])
    for split, _ in task.submissions:
        rows = glue.read_split(tmp_path / name, task, split)  # the folder itself will do as well
        assert [row.name for row in rows] == ["0", "1", "2", "3"] and {row.label for row in rows} == {""}


def test_the_leaderboard_has_eleven_files():
    names = [file for task in (*glue.TASKS.values(), glue.AX) for _, file in task.submissions]
    assert len(names) == len(set(names)) == 11


def test_files_that_are_not_the_tasks(tmp_path, caplog):
    write_split(tmp_path, "RTE", "train")
    with pytest.raises(UserError, match=r"RTE/dev\.tsv: no such file; set --config.data.dir"):
        glue.read_split(tmp_path, glue.TASKS["RTE"], "dev")
    with pytest.raises(UserError, match=r"has no column 'question', only index, .*; it is not a file of QNLI"):
        glue.read_split(tmp_path / "RTE", glue.TASKS["QNLI"], "train")
    with pytest.raises(UserError, match="'Rte' is not a GLUE task; choose one of CoLA,"):
        glue.task_of("Rte")
    path = tmp_path / "RTE" / "train.tsv"
    path.write_text(path.read_text() + "9\tone sentence alone\n")
    with pytest.raises(UserError, match=r"train.tsv: line 6 has 2 columns, not 4; get the file again"):
        glue.read_split(tmp_path, glue.TASKS["RTE"], "train")
    write_split(tmp_path, "QQP", "train")
    path = tmp_path / "QQP" / "train.tsv"
    path.write_text(path.read_text() + "9\t1\t2\tcut short\n")
    assert len(glue.read_split(tmp_path, glue.TASKS["QQP"], "train")) == 4, "as some official rows are"
    assert caplog.messages == [f"{path}: skipped 1 truncated rows"]


@pytest.mark.parametrize("has_label", [False, True])
def test_no_row_of_a_test_set_is_left_out(has_label, tmp_path):
    write_split(tmp_path, "QQP", "train" if has_label else "test")
    path = tmp_path / "QQP" / "test.tsv"
    if has_label:  # as some copies have it
        path.with_name("train.tsv").rename(path)
    path.write_text(path.read_text() + "4\tcut short\n5\tnot\tcut\tx\tx\tx\n")
    with pytest.raises(UserError, match=r"test\.tsv: line 6 has 2 columns, not \d; get the file again"):
        glue.read_split(tmp_path, glue.TASKS["QQP"], "test")


@pytest.mark.real
def test_official_counts(real_data):
    counts = {"SST-2": (67349, 872), "CoLA": (8551, 1043), "MRPC": (3668, 408), "RTE": (2490, 277)}
    counts |= {"STS-B": (5749, 1500), "WNLI": (635, 71)}
    for name, expected in counts.items():
        task = glue.TASKS[name]
        assert tuple(len(glue.read_split(real_data / "glue", task, split)) for split in ("train", "dev")) == expected

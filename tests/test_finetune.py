"""What the command makes of seeds and of all tasks of GLUE, with the training replaced."""

import pytest

from bert_jax import config as task_config
from bert_jax import finetune
from bert_jax.data.datasets.glue import TASKS as GLUE_TASKS
from bert_jax.errors import UserError
from bert_jax.tasks.glue import Config
from configs.finetune import glue
from tests.data.datasets.test_glue import write_split


@pytest.fixture
def started(monkeypatch):
    """The (init_from, folder) of each run that is started."""
    runs = []

    def train(values, folder):
        runs.append((values["init_from"], str(folder)))
        folder.mkdir(parents=True)

    monkeypatch.setattr(finetune, "train_command", train)
    monkeypatch.setattr(finetune, "default_evaluation", lambda folder: (1, {"accuracy": 0.5}))
    return runs


def values(directory, recipe="all", **changes):
    config = glue.get_config(recipe)
    config.update_from_flattened_dict({"data.dir": str(directory), "init_from": "pretrained"})
    return config.to_dict() | changes


def test_small_tasks_may_start_from_mnli_seed_by_seed(started, tmp_path):
    for name, dev in (("MRPC", "dev"), ("MNLI", "dev_matched"), ("RTE", "dev"), ("CoLA", "dev")):
        for split in ("train", dev):
            write_split(tmp_path, name, split, 4)
    out = tmp_path / "out"
    finetune.finetune_glue(values(tmp_path, seeds=2, starts_from_mnli=True), out)
    assert started == [
        (f"{out}/MNLI/seed_{seed}" if name in ("MRPC", "RTE") else "pretrained", f"{out}/{name}/seed_{seed}")
        for name in ("CoLA", "MNLI", "MRPC", "RTE")
        for seed in (0, 1)
    ]


def test_a_start_that_is_not_there(started, tmp_path):
    write_split(tmp_path, "RTE", "train", 4)
    with pytest.raises(UserError, match=r"starts_from_mnli: .* does not have MNLI"):
        finetune.finetune_glue(values(tmp_path, starts_from_mnli=True), tmp_path / "out")
    with pytest.raises(UserError, match="has none of the folders CoLA, SST-2"):
        finetune.finetune_glue(values(tmp_path / "elsewhere"), tmp_path / "out")
    assert started == []


def test_a_folder_of_the_same_name_is_no_start(started, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed_0").mkdir()
    finetune.finetune(values(tmp_path, seeds=2, init_from=""), tmp_path / "out")
    assert [start for start, _ in started] == ["", ""]


def test_each_task_of_glue_has_its_published_settings(tmp_path):
    given = values(tmp_path, "all,roberta", calibrated=True)
    for name, rate, size in (("CoLA", 1e-5, 16), ("STS-B", 2e-5, 16), ("MNLI", 1e-5, 32)):
        of_task = finetune.glue_task_config(name, given, "pretrained")
        assert (of_task["optimizer"]["learning_rate"], of_task["train"]["batch_size"]) == (rate, size)
        assert of_task["optimizer"]["clip_norm"] == 0 and of_task["data"]["name"] == name
        assert of_task["calibrated"] == (name != "STS-B"), "a number has no probability"
        assert "of_tasks" not in of_task
    given["optimizer"]["learning_rate"] = 3e-5
    assert finetune.glue_task_config("CoLA", given, "")["optimizer"]["learning_rate"] == 3e-5, "what is set stays"
    of_task = finetune.glue_task_config("RTE", values(tmp_path, "all,albert"), "")
    assert (of_task["train"]["num_steps"], of_task["optimizer"]["warmup_steps"]) == (800, 200)
    assert finetune.glue_task_config("STS-B", values(tmp_path, "all,electra"), "")["num_epochs"] == 10


@pytest.mark.parametrize("recipe", glue.RECIPES)
@pytest.mark.parametrize("name", GLUE_TASKS)
def test_a_task_alone_is_as_among_all(name, recipe, tmp_path):
    among_all = finetune.glue_task_config(name, values(tmp_path, f"all,{recipe}"), "pretrained")
    assert among_all == values(tmp_path, f"{name},{recipe}")
    task_config.from_dict(Config(), among_all)

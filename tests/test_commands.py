"""The four commands one after the other, as a user gives them, and what they leave in the run folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bert_jax import run, trained
from bert_jax.cli.main import Tuples
from bert_jax.config import to_config_dict
from bert_jax.errors import UserError
from bert_jax.run import run_training
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks import text
from bert_jax.train.loop import TrainConfig
from tests.running import ROOT, checkpoints, command, config_flag, environment, losses, rows
from tests.running import run as run_command


@pytest.fixture(scope="module")
def pretrained(tiny_config, tmp_path_factory) -> Path:
    """A run of MLM and NSP by the command, two checkpoints, with a profile."""
    folder = tmp_path_factory.mktemp("pretrained")
    flag = config_flag(tiny_config(**{"objectives": ("mlm",)}), folder / "config")
    flags = ["--config.objectives=mlm,nsp", "--config.train.profile_steps=(1, 3)", "--config.train.eval_every=2"]
    run_command(command("pretrain", flag, f"--workdir={folder}/run", *flags), devices=8)
    return folder / "run"


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    """A labelled file to train on and one to validate with: whether a text is about the river."""
    folder = tmp_path_factory.mktemp("tables")
    for name, count in (("train", 32), ("validation", 12)):
        texts = [f"the {'old river' if i % 2 else 'young ship'} number {i}" for i in range(count)]
        lines = [json.dumps({"text": t, "label": "river" if "river" in t else "other"}) for t in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def finetuning(tables: Path, init_from: Path, **settings):
    config = text.Config(
        init_from=str(init_from),
        data=text.DataConfig(f"{tables}/train.jsonl", f"{tables}/validation.jsonl", sequence_length=32),
        train=TrainConfig(num_steps=0, batch_size=8, log_every=1, eval_every=0, eval_batch_size=8),
    )
    values = to_config_dict(config)
    values.update_from_flattened_dict({"num_epochs": 1.0, "train.compilation_cache": False, **settings})
    return values.lock()


@pytest.fixture(scope="module")
def finetuned(pretrained, tables, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetuned")
    flag = config_flag(finetuning(tables, pretrained), folder / "config")
    run_command(command("finetune", flag, f"--workdir={folder}/run"), devices=8)
    return folder / "run"


def answers(done: subprocess.CompletedProcess[str]) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_pretraining_leaves_its_numbers(pretrained):
    lines = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in lines if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    fields = {"loss", "mlm/loss", "mlm/accuracy", "nsp/loss", "nsp/accuracy", "learning_rate", "tokens_per_second"}
    assert all(fields <= row.keys() for row in steps)
    evaluations = [row for row in lines if "eval/loss" in row]
    assert [row["step"] for row in evaluations] == [2, 4]
    names = {"eval/loss", "eval/mlm/loss", "eval/mlm/accuracy", "eval/nsp/loss", "eval/nsp/accuracy", "step"}
    assert all(names == row.keys() for row in evaluations)
    assert checkpoints(pretrained) == [2, 4]
    assert run_folder.read_config(pretrained)["objectives"] == ["mlm", "nsp"]


def test_profile_and_tensorboard(pretrained):
    assert list((pretrained / "profile").rglob("*.xplane.pb"))
    events = list((pretrained / "tensorboard").glob("events.out.tfevents.*"))
    assert events and b"mlm/loss" in b"".join(path.read_bytes() for path in events)


def test_evaluate_all_then_one(pretrained, tmp_path):
    workdir = shutil.copytree(pretrained, tmp_path / "copied")
    done = run_command(command("evaluate", f"--workdir={workdir}", "--step=all"), devices=8)
    first = json.loads((workdir / "evaluation.json").read_text())
    assert list(first) == ["2", "4"]
    assert "held-out metric" in done.stdout and "step 2" in done.stdout and "step 4" in done.stdout
    assert "mlm/perplexity" in first["4"]
    during_training = {row["step"]: row["eval/loss"] for row in rows(workdir) if "eval/loss" in row}
    assert {int(step): row["loss"] for step, row in first.items()} == pytest.approx(during_training, rel=1e-5)

    run_command(command("evaluate", f"--workdir={workdir}", "--step=2"), devices=8)
    assert json.loads((workdir / "evaluation.json").read_text()) == first, "held-out evaluation is deterministic"


def test_fill_masks_of_a_moved_run(pretrained, tmp_path):
    workdir = shutil.copytree(pretrained, tmp_path / "elsewhere" / "run")
    done = run_command(command("predict", f"--workdir={workdir}", "--text", "the [MASK] followed the [MASK]"))
    (answer,) = answers(done)
    assert answer["text"] == "the [MASK] followed the [MASK]" and len(answer["masks"]) == 2
    for mask in answer["masks"]:
        probabilities = [filling["probability"] for filling in mask]
        assert len(mask) == 5 and probabilities == sorted(probabilities, reverse=True) and sum(probabilities) < 1


def test_label_a_file(finetuned, tmp_path):
    assert len(losses(finetuned)) == 4
    texts = [f"the ship number {i}" for i in range(5)]
    (tmp_path / "input").write_text("\n".join([*texts, "", json.dumps({"text": "a river", "id": 7})]) + "\n")
    flags = [f"--workdir={finetuned}", "--batch_size=4"]
    run_command(command("predict", *flags, f"--input={tmp_path}/input", f"--output={tmp_path}/output"))
    from_file = [json.loads(line) for line in (tmp_path / "output").read_text().splitlines()]
    assert [answer["text"] for answer in from_file] == [*texts, "a river"] and from_file[-1]["id"] == 7
    for answer in from_file:
        assert answer["probabilities"].keys() == {"river", "other"}
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)

    piped = subprocess.run(
        command("predict", *flags, "--input=-"),
        input=(tmp_path / "input").read_text(),
        env=environment(1),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert piped.returncode == 0, piped.stderr
    assert answers(piped) == from_file


def test_evaluate_a_finetuned_run(finetuned):
    (result,) = trained.run_evaluation(run_folder.get_config(str(finetuned)), finetuned, [], finetuned).values()
    assert result["accuracy"] == pytest.approx(rows(finetuned)[-1]["eval/accuracy"])
    assert result["loss"] == pytest.approx(rows(finetuned)[-1]["eval/loss"], rel=1e-5)


def test_results_on_other_data_have_a_place_of_their_own(finetuned, tables, tmp_path):
    workdir = shutil.copytree(finetuned, tmp_path / "run")
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "a river", "label": "river"}\n' * 3)
    before = (workdir / "predictions" / "validation.txt").read_text()
    values = run_folder.get_config(str(workdir))
    values.data.validation = str(other)
    output = run_folder.results_folder(workdir, values.to_dict())
    assert output == workdir / "evaluations" / f"{tmp_path.name}_other"
    trained.run_evaluation(values, workdir, [], output)
    assert len((output / "predictions" / "validation.txt").read_text().splitlines()) == 3
    (step,) = trained.run_evaluation(run_folder.get_config(str(workdir)), workdir, [checkpoints(workdir)[-1]], workdir)
    assert (
        len((workdir / "evaluations" / f"step_{step}" / "predictions" / "validation.txt").read_text().splitlines()) > 3
    )
    assert (workdir / "predictions" / "validation.txt").read_text() == before


# Packages that take as long to import as JAX does, or need to be installed for other purposes; predict uses none of them.
NOT_FOR_PREDICT = {
    *("sklearn", "scipy.stats", "scipy.optimize", "seqeval", "grain", "tensorflow_datasets", "tensorboard"),
    *("rich.progress", "matplotlib", "tensorflow", "torch", "transformers"),
}
START = """
import atexit, runpy, sys
import jax
from bert_jax.tasks import glue, pretraining, qa, text, tokens

counts = {"hits": 0, "misses": 0}
def count(event, **_):
    kind = event.rpartition("/cache_")[2]
    if kind in counts:
        counts[kind] += 1

jax.monitoring.register_event_listener(count)
atexit.register(lambda: print(counts["hits"], counts["misses"], *sys.modules, file=sys.stderr))
runpy.run_module("bert_jax.predict", run_name="__main__", alter_sys=True)
"""


def test_predict_starts_with_what_it_needs(finetuned, tmp_path, monkeypatch):
    """No package of training or scoring is imported, and the second start finds all programs compiled."""
    monkeypatch.setenv("HOME", str(tmp_path))  # whose folder for compiled programs is empty
    flags = [f"--workdir={finetuned}", "--text=the old river", "--config.train.compilation_cache=True"]
    hits, misses = [], []
    for _ in range(2):
        variables = environment(1)
        del variables["JAX_COMPILATION_CACHE_DIR"], variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]
        done = subprocess.run(
            [sys.executable, "-c", START, *flags], env=variables, cwd=ROOT, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        assert answers(done)[0]["label"] in ("river", "other")
        counted_hits, counted_misses, *modules = done.stderr.splitlines()[-1].split()
        hits.append(int(counted_hits))
        misses.append(int(counted_misses))
        assert not NOT_FOR_PREDICT.intersection(modules)
    compiled = [path.name for path in (tmp_path / ".cache" / "bert_jax" / "compiled").glob("*-cache")]
    assert len(compiled) == hits[1] > 0 and hits[0] == 0, "those of the first start"
    assert misses[1] == misses[0] - hits[1], "what takes no time to compile is not kept"


def test_which_data_are_others(finetuned, monkeypatch):
    def place(**options) -> str:
        values = run_folder.get_config(str(finetuned))
        values.data.update(options)
        return str(run_folder.results_folder(finetuned, values.to_dict()).relative_to(finetuned))

    own = Path(run_folder.read_config(finetuned)["data"]["validation"])
    assert place() == place(train="other.jsonl") == place(validation=f"{own.parent}/./{own.name}") == "."
    monkeypatch.chdir(own.parent)
    assert place(validation=own.name) == "."
    assert place(validation="test.jsonl") == "evaluations/test"
    assert place(validation="a/news/test.jsonl") == "evaluations/news_test" != place(validation="a/tweets/test.jsonl")
    assert place(sequence_length=8) == "evaluations/sequence_length_8"


def test_how_a_run_came_to_its_end():
    assert run.ended(10, [5, 10]) == run.ended(10, []) == "complete, 10 steps"
    assert run.ended(10, [3, 6]) == "stopped early, at step 6 of 10, as it got no better"


def test_a_folder_of_several_runs(finetuned, tmp_path):
    shutil.copytree(finetuned, tmp_path / "seeds" / "seed_0")
    done = run_command(command("predict", f"--workdir={tmp_path}/seeds", "--text=a"), code=2)
    assert f"holds several runs; choose one of {tmp_path}/seeds/seed_0" in done.stderr


def parameters(workdir: Path, step: int | None = None):
    _, params = trained.load_predictor(run_folder.get_config(str(workdir)), workdir, step)
    return params


def same(left, right) -> bool:
    import jax

    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), left, right)))


@pytest.mark.slow
def test_frozen_and_from_scratch(pretrained, tables, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)
    encoder = parameters(pretrained)["encoder"]
    settings = {"train.num_steps": 2, "train.eval_examples": 8, "checkpoint.every": 1}

    frozen = tmp_path / "frozen"
    run_training(finetuning(tables, pretrained, **settings, **{"optimizer.trainable": "heads/"}), frozen)
    assert same(parameters(frozen)["encoder"], encoder)
    assert not same(parameters(frozen, 1)["heads"], parameters(frozen, 2)["heads"])

    scratch = tmp_path / "scratch"
    run_training(finetuning(tables, pretrained, **settings, **{"from_scratch": True}), scratch)
    assert not same(parameters(scratch)["encoder"], encoder)
    assert run_folder.read_config(scratch)["model"] == run_folder.read_config(pretrained)["model"]


def test_finetuning_may_change_how_the_model_runs_but_not_what_it_is(pretrained, tables, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)
    settings = {"train.num_steps": 1, "train.eval_examples": 8}
    # Both values are EncoderConfig's own: it counts what is set, not what is unusual.
    run_training(finetuning(tables, pretrained, **settings, **{"model.dropout": 0.1}), tmp_path / "dropout")
    before, after = (run_folder.read_config(folder)["model"] for folder in (pretrained, tmp_path / "dropout"))
    assert after == before | {"dropout": 0.1}
    with pytest.raises(
        UserError, match=f"model.num_layers=12: the model is that of {pretrained}, where num_layers is 2; leave"
    ):
        run_training(finetuning(tables, pretrained, **settings, **{"model.num_layers": 12}), tmp_path / "layers")
    assert not (tmp_path / "layers").exists()


def test_a_run_from_before_there_was_an_option(pretrained, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(pretrained, old)
    config = run_folder.read_config(old)
    del config["model"]["local_window"], config["train"]["compilation_cache"], config["options"]["sop"]
    run_folder.write_config(old, config)
    assert same(parameters(old), parameters(pretrained))


@pytest.mark.parametrize("objectives", [("mlm",), ("mlm", "sop")])
def test_other_objectives(tiny_config, tmp_path, monkeypatch, objectives):
    monkeypatch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)
    evaluation = run_training(tiny_config(objectives=(",".join(objectives),), **{"train.num_steps": 2}), tmp_path)
    for name in objectives:
        assert {f"{name}/loss", f"{name}/accuracy"} <= rows(tmp_path)[0].keys()
        assert f"{name}/loss" in evaluation
    assert run_folder.read_config(tmp_path)["objectives"] == list(objectives)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.3:corpora/a,0.2:b c", ("0.3:corpora/a", "0.2:b c")),
        ("3:6,6:12", ("3:6", "6:12")),
        ("'3:6','6:12'", ("3:6", "6:12")),
        ("0.3:corpora/a", ("0.3:corpora/a",)),
        ("0,2", (0, 2)),
    ],
)
def test_tuples_need_no_quotes(text, expected):
    assert Tuples().parse(text) == expected
    with pytest.raises(ValueError, match="Error while parsing"):
        Tuples().parse("('a',")

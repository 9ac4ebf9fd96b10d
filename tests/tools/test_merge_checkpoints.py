"""The mean of checkpoints: exact where they are equal, weighted, of the moving average; and runs that do not go together."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax.conversion import convert as conversion
from bert_jax.errors import EXIT_USER_ERROR, UserError
from bert_jax.frozen_models import kept_folder
from bert_jax.init_from import check_origin, open_initial_model
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.checkpoints import CheckpointStore
from bert_jax.run_folder.provenance import read_origin
from bert_jax.tasks import base as tasks
from bert_jax.trained import run_evaluation
from tests.running import ROOT, assert_one_line, command, run
from tools.lib.merging import Checkpoint, weighted_mean
from tools.merge_checkpoints import merge, named_checkpoints, weights_of


@pytest.fixture(scope="module")
def parts(run_with_average):
    """The moving averages of steps 2 and 4."""
    store = CheckpointStore(run_with_average)
    structure = store.structure("ema")
    return {step: store.restore({"ema": structure}, step)[1]["ema"] for step in (2, 4)}


def tool(*flags: str, code: int = 0):
    python, *_ = command("predict")
    return run([python, str(ROOT / "tools" / "merge_checkpoints.py"), *flags], code=code)


def assert_close(left, right):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), left, right)


@pytest.mark.slow
def test_merged_run_is_used_like_any_other(run_with_average, parts, tiny_config, tmp_path):
    output = tmp_path / "new" / "merged"
    done = tool(f"--runs={run_with_average}:2,{run_with_average}", "--weights=1,3", f"--output={output}")
    assert "step 2: weight 0.25, the moving average" in done.stdout and "step 4: weight 0.75" in done.stdout
    params = bert_jax.load(output).params
    assert_close(params, jax.tree.map(lambda a, b: (a + 3 * b) / 4, parts[2], parts[4]))
    assert not np.allclose(*(jax.tree.leaves(parts[step])[0] for step in (2, 4)))

    (scores,) = run_evaluation(run_folder.get_config(str(output)), output, [], output).values()
    assert np.isfinite(scores["loss"])
    conversion.export_run(output, tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "not trained since" in card and "run, step 2 (weight 0.25), run, step 4 (weight 0.75)" in card
    task = tasks.create(tiny_config(**{"init_from": str(output)}), tmp_path / "continued")
    check_origin(task, open_initial_model(output))
    assert [(one["step"], one["weight"]) for one in read_origin(output)["sources"]] == [(2, 0.25), (4, 0.75)]
    before, after = run_folder.read_config(run_with_average), run_folder.read_config(output)
    assert before.pop("train") | {"ema_decay": 0.0} == after.pop("train") and before == after


@pytest.mark.parametrize("weights", [[1, 1, 1], [0.1, 0.7, 0.2], [3, -1, -1.5]])
def test_mean_of_equal_checkpoints_is_the_same(run_with_average, parts, weights):
    merged = weighted_mean([Checkpoint.open(run_with_average, 2, weight) for weight in weights])
    jax.tree.map(np.testing.assert_array_equal, merged, parts[2])


def test_weights_may_be_negative(run_with_average, parts):
    merged = weighted_mean([Checkpoint.open(run_with_average, 2, -2), Checkpoint.open(run_with_average, 4, 4)])
    assert_close(merged, jax.tree.map(lambda a, b: 2 * b - a, parts[2], parts[4]))


def test_frozen_models_are_copied(run_with_average, tiny_bert, tmp_path):
    """So a merged student is evaluated though the folder of its teacher is gone."""
    source = shutil.copytree(run_with_average, tmp_path / "source")
    teacher = kept_folder(source, "distillation", "teacher")
    shutil.copytree(tiny_bert, teacher)
    merge([(source, 2), (source, 4)], [1, 1], tmp_path / "merged")
    copied = kept_folder(tmp_path / "merged", "distillation", "teacher")
    jax.tree.map(np.testing.assert_array_equal, bert_jax.load(copied).params, bert_jax.load(teacher).params)


def test_a_fine_tuned_head_and_its_labels_come_along(model_folder, tiny_bert, tmp_path):
    source = model_folder("bert/token_classification")
    config = json.loads((source / "config.json").read_text())
    labels = [f"L{number}" for number in range(len(config["id2label"]))]
    (source / "config.json").write_text(json.dumps(config | {"id2label": dict(enumerate(labels))}))
    conversion.import_run(source, tmp_path / "a")
    merge([(tmp_path / "a", None), (tmp_path / "a", 0)], [1, 1], tmp_path / "merged")
    before, after = (bert_jax.load(tmp_path / name) for name in ("a", "merged"))
    assert after.labels == before.labels == labels
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    (tmp_path / "a" / "labels.json").write_text(json.dumps(labels[::-1]))
    with pytest.raises(UserError, match=r"a: another model: labels is L3, L2, L1, L0 there, L0, L1, L2, L3 in"):
        merge([(tmp_path / "merged", None), (tmp_path / "a", None)], [1, 1], tmp_path / "x")
    with pytest.raises(UserError, match=r"task is pretraining there, tokens in .*, heads is mlm there, token in"):
        merge([(tmp_path / "a", None), (tiny_bert, None)], [1, 1], tmp_path / "x")


def test_runs_of_different_models_are_refused(run_with_average, tiny_bert, tmp_path):
    with pytest.raises(UserError) as error:
        merge([(run_with_average, None), (tiny_bert, None)], [1, 1], tmp_path / "merged")
    for part in (
        f"{tiny_bert}: another model",
        "the tokenizer is",
        "model.vocab_size is 53 there, 128 in",
    ):
        assert part in str(error.value)
    other = shutil.copytree(run_with_average, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["model"]["activation"] = "relu"
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"model.activation is relu there, gelu in {run_with_average}"):
        merge([(run_with_average, None), (other, None)], [1, 1], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_damage_leaves_nothing(run_with_average, tmp_path):
    damaged = shutil.copytree(run_with_average, tmp_path / "damaged")
    checksums = damaged / "checkpoints" / "4" / "checksums" / "metadata"
    values = json.loads(checksums.read_text())
    checksums.write_text(json.dumps({name: number ^ 1 for name, number in values.items()}))
    with pytest.raises(UserError, match=r"checkpoints/4: damaged checkpoint \(.*; use another"):
        merge([(run_with_average, None), (damaged, None)], [1, 1], tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_invalid_checkpoints_are_refused(run_with_average, tmp_path):
    places = [(run_with_average, 2), (run_with_average, 4)]
    for output, wrong, message in [
        (
            tmp_path / "merged",
            [(run_with_average, 2), (run_with_average, 5)],
            "no checkpoint of step 5; choose from 2, 3, 4",
        ),
        (tmp_path / "merged", [(run_with_average, 2), (run_with_average / "checkpoints", None)], "not a run folder"),
        (run_with_average, places, "exists and is not empty; choose a new folder"),
    ]:
        with pytest.raises(UserError, match=message):
            merge(wrong, [1, 1], output)
    assert not list(tmp_path.iterdir())
    done = tool(f"--runs={run_with_average}", f"--output={tmp_path / 'merged'}", code=EXIT_USER_ERROR)
    assert_one_line(done.stderr, "--runs: names one checkpoint; at least two are merged")


@pytest.mark.parametrize(
    ("runs", "workdir", "steps", "message"),
    [
        ([], None, [], r"set --runs=RUN\[:STEP\],... or --workdir=RUN with --steps=N,..."),
        (["a", "b"], "c", [], "not both"),
        ([], "a", [], "--steps: names no checkpoint; at least two"),
        (["a"], None, [], "--runs: names one checkpoint"),
        ([], "a", ["2", "x"], "'x' is not a step"),
        (["a", "b"], None, ["2"], "write RUN:STEP"),
        (["a", "b:2", "a"], None, [], "--runs: names a checkpoint twice; remove one, or set --weights"),
    ],
)
def test_flags_that_name_no_checkpoints(runs, workdir, steps, message):
    with pytest.raises(UserError, match=message):
        named_checkpoints(runs, workdir, steps)


def test_checkpoints_are_named_in_two_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c:3").mkdir()
    assert named_checkpoints(["a:5", "b", "c:3"], None, []) == [(Path("a"), 5), (Path("b"), None), (Path("c:3"), None)]
    assert named_checkpoints([], "a", ["1", "2"]) == [(Path("a"), 1), (Path("a"), 2)]


@pytest.mark.parametrize("values", [["1"], ["1", "-1"], ["0", "0"], ["1", "nan"], ["1", "inf"], ["1", "two"]])
def test_invalid_weights(values):
    with pytest.raises(UserError, match=r"--weights=.*: .*(positive|numbers|one for each)"):
        weights_of(values, 2)
    assert weights_of([], 2) == [1.0, 1.0] and weights_of(["0.5", "-0.25"], 2) == [0.5, -0.25]

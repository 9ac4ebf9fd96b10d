"""Objectives with models of their own: a generator that is trained and sampled from on the devices, and a frozen teacher."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax import run, trained
from bert_jax.errors import UserError
from bert_jax.frozen_models import with_frozen_models
from bert_jax.objectives.losses import encoder_passes
from bert_jax.parallel.mesh import make_mesh
from bert_jax.run_folder.checkpoints import CheckpointStore
from bert_jax.tasks import base as tasks
from bert_jax.train.loop import Stopped
from tests.running import rows

STEPS = 6
SMALL_GENERATOR = {"options.rtd.generator_size": 0.5, "options.rtd.generator_layers": 0.5}


@pytest.fixture(scope="module", autouse=True)
def not_measured():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "measured_matmul_flops", lambda *arguments: 1e9)
        yield


@pytest.fixture(scope="module")
def teacher(tiny_config, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    run.run_training(tiny_config(objectives=("mlm",), **{"model.num_layers": 3}), workdir)
    return workdir


@pytest.fixture(params=["rtd", "distillation"])
def config(request, tiny_config, teacher):
    """A config of a run with each of them, with dropout."""

    def make(**changes):
        options = {
            "rtd": {"objectives": ("rtd",), **SMALL_GENERATOR},
            "distillation": {
                "objectives": ("distillation",),
                "options.distillation.folder": str(teacher),
                "init_from": str(teacher),
                "init_layers": (0, 2),
                "options.distillation.hidden_mse_weight": 1.0,
                "options.distillation.hidden_layers": ("0:0", "1:2"),
            },
        }[request.param]
        dropout = {"model.dropout": 0.1, "model.attention_dropout": 0.1}
        return tiny_config(**{"train.num_steps": STEPS, "checkpoint.every": 3, **dropout, **options, **changes})

    return make


def train(values, workdir, num_devices, monkeypatch) -> None:
    monkeypatch.setattr(run, "make_mesh", lambda config: make_mesh(config, jax.devices()[:num_devices]))
    run.run_training(values, workdir)


def arrays(workdir: Path) -> dict[str, np.ndarray]:
    store = CheckpointStore(workdir)
    _, state = store.restore({name: store.structure(name) for name in ("params", "opt_state")}, STEPS)
    return {jax.tree_util.keystr(path): array for path, array in jax.tree.leaves_with_path(state)}


@pytest.mark.slow
def test_exact_on_resume_and_the_same_on_one_device(config, teacher, tmp_path, monkeypatch):
    """On a mesh of eight, to the bit after a stop; on one device, up to rounding: so samples depend on neither.

    The teacher is kept in the run: it resumes though the folder of the teacher is gone.
    """
    sizes = {"parallel.fsdp": 2, "parallel.tensor": 2}
    train(config(**sizes), tmp_path / "whole", 8, monkeypatch)
    stopping = iter([False, False, False, False, True])
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(run.hosts, "stop_signal", lambda: type("Stop", (), {"requested": lambda self: next(stopping)})())
        train(config(**sizes), tmp_path / "resumed", 8, monkeypatch)
    gone = teacher.rename(teacher.with_name("gone"))
    train(config(**sizes), tmp_path / "resumed", 8, monkeypatch)
    gone.rename(teacher)
    losses = [[row["loss"] for row in rows(tmp_path / name) if "loss" in row] for name in ("whole", "resumed")]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS
    whole, resumed = arrays(tmp_path / "whole"), arrays(tmp_path / "resumed")
    assert whole.keys() == resumed.keys()
    for path, array in whole.items():
        np.testing.assert_array_equal(array, resumed[path], err_msg=path)

    encoder = bert_jax.load(tmp_path / "whole")
    assert encoder(np.array([[5, 6, 7, 8]])).hidden_states[-1].shape == (1, 4, 32)
    (evaluated,) = trained.run_evaluation(config(**sizes), tmp_path / "whole", [], tmp_path).values()
    last = [row for row in rows(tmp_path / "whole") if "eval/loss" in row][-1]
    assert evaluated["loss"] == pytest.approx(last["eval/loss"], rel=1e-5), "another sample, or another teacher"

    train(config(**{"train.accumulation_steps": 2}), tmp_path / "one", 1, monkeypatch)
    for one, eight in zip(rows(tmp_path / "one"), rows(tmp_path / "whole"), strict=True):
        for name in one:
            if "loss" in name:
                np.testing.assert_allclose(one[name], eight[name], rtol=2e-4, atol=1e-6, err_msg=name)


def test_models_are_trained_and_frozen(tiny_config, teacher, start_run):
    """The generator is trained by its own loss; the teacher is no part of the state."""
    values = tiny_config(objectives=("rtd",), **SMALL_GENERATOR, **{"optimizer.warmup_steps": 0})
    start = start_run(values, num_devices=1)
    with jax.set_mesh(start.mesh):
        state, _ = start.step(start.state, next(start.batches()))
    before, after = (tree["params"]["heads"]["generator"] for tree in (start.state, state))
    changed = jax.tree.leaves(jax.tree.map(lambda x, y: bool((x != y).any()), before, after))
    assert sum(changed) > 0.9 * len(changed)

    folder = "options.distillation.folder"
    task = tasks.create(tiny_config(objectives=("distillation",), **{folder: str(teacher)}), Path("no-run"))
    assert set(task.losses.model.abstract["heads"]) == {"mlm"}
    _, frozen = with_frozen_models(task, make_mesh(task.config.parallel), Path("no-run"))
    leaves = jax.tree.leaves(frozen)
    assert leaves and all(len(leaf.sharding.device_set) == 8 for leaf in leaves)
    low_config = tiny_config(objectives=("distillation",), **{folder: str(teacher), "model.dtype": "bfloat16"})
    _, frozen = with_frozen_models(
        tasks.create(low_config, Path("no-run")), make_mesh(task.config.parallel), Path("no-run")
    )
    low = jax.tree.leaves(frozen)
    assert {str(leaf.dtype) for leaf in low} == {"bfloat16"} and all(len(leaf.sharding.device_set) == 8 for leaf in low)
    with pytest.raises(UserError, match=r"no config\.json"):
        values = tiny_config(objectives=("distillation",), **{folder: str(teacher / "nothing")})
        with_frozen_models(tasks.create(values, Path("no-run")), make_mesh(task.config.parallel), Path("no-run"))


def test_a_teacher_with_another_tokenizer(tiny_config, tiny_bert, tmp_path):
    values = tiny_config(objectives=("distillation",), **{"options.distillation.folder": str(tiny_bert)})
    with pytest.raises(UserError, match="has another tokenizer than this run; objective distillation needs the same"):
        run.run_training(values, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def opened(values, workdir):
    """Loads the frozen models of a config, without training."""
    task = tasks.create(values, workdir)
    return with_frozen_models(task, make_mesh(task.config.parallel), workdir)


def test_a_run_keeps_its_teacher(tiny_config, teacher, tmp_path, caplog):
    """Another one on resuming is an error, however the first is spelled; a run that goes on from it has the copy."""
    folder, other = "options.distillation.folder", tmp_path / "other"
    shutil.copytree(teacher, other)
    first = shutil.copytree(teacher, tmp_path / "first")
    values = tiny_config(objectives=("distillation",), **{folder: str(first), "train.num_steps": 1})
    run.run_training(values, tmp_path / "run")
    link = tmp_path / "link"
    link.symlink_to(first)
    opened(tiny_config(objectives=("distillation",), **{folder: str(link)}), tmp_path / "run")
    with pytest.raises(UserError) as raised:
        opened(tiny_config(objectives=("distillation",), **{folder: str(other)}), tmp_path / "run")
    for part in (f"{folder}={other}: the run has the teacher of {first}", f"set --config.{folder}={first}, or use"):
        assert part in str(raised.value) and "\n" not in str(raised.value)
    link.unlink()
    shutil.rmtree(first)
    opened(values, tmp_path / "run")
    going_on = {"init_from": str(tmp_path / "run"), "objectives": ("distillation",)}
    caplog.set_level("INFO")
    opened(tiny_config(**going_on, **{folder: str(first)}), tmp_path / "next")
    assert str(tmp_path / "run" / "frozen" / "distillation.teacher") in caplog.text
    caplog.clear()
    opened(tiny_config(**going_on, **{folder: str(other)}), tmp_path / "next")
    assert f"the model of {other}," in caplog.text


def test_a_teacher_reads_the_rows_of_evaluation(tiny_config, teacher, tmp_path):
    """They may be longer than those of all phases."""
    values = tiny_config(
        objectives=("distillation",),
        **{"options.distillation.folder": str(teacher), "model.max_positions": 64, "data.sequence_length": 64},
    )
    with values.unlocked():
        values.phases = ({"share": 1.0, "sequence_length": 32},)
    with pytest.raises(UserError, match="a teacher of 32 positions, for sequences of 64 tokens"):
        opened(values, tmp_path / "run")


def test_passes_are_shared_where_the_inputs_are_the_same():
    batch = {"input_ids": np.zeros(1), "attention_mask": np.ones(1), "token_type_ids": np.zeros(1)}
    batches = {
        "mlm": batch,
        "nsp": dict(batch),
        "teacher": batch | {"more": 1},
        "rtd": batch | {"input_ids": np.ones(1)},
    }
    assert encoder_passes(batches) == [["mlm", "nsp", "teacher"], ["rtd"]]

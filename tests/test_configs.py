"""Every recipe in configs/, shrunk, trains a step, evaluates and saves."""

import importlib.util
import json
import math
import re
from functools import partial
from pathlib import Path

import jax
import pytest

from bert_jax import run
from bert_jax.parallel.mesh import make_mesh
from tests.data.datasets.test_glue import write_split
from tests.data.datasets.test_squad import write_questions

ROOT = Path(__file__).parent.parent
RECIPES = sorted(path for path in (ROOT / "configs").glob("**/*.py") if path.parent.name != "sheets")


def load(path: Path, monkeypatch):
    """The module of a recipe, as the commands load it: from the root of the checkout."""
    monkeypatch.syspath_prepend(ROOT)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shrink_model(model) -> None:
    """Makes a model tiny and leaves it what it is: its groups, its pattern of attention, its narrow tables."""
    pattern = max(1, model.num_layer_groups) * model.layers_per_group
    changes = {"vocab_size": 128, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "max_positions": 32}
    changes["num_layers"] = pattern * (1 + (model.global_attention_every > 1 or pattern == 1))
    changes["embedding_size"] = min(model.embedding_size, 16)
    changes["local_window"] = min(model.local_window, 4)
    model.update(changes)


def kept_phases(config) -> list[dict]:
    """The phases of a recipe, shorter, without those that differ from the next one in the batch size alone."""
    lengths = {
        length: 32 >> rank
        for rank, length in enumerate(sorted({p["sequence_length"] for p in config.get("phases") or ()}))
    }
    phases = [phase | {"sequence_length": lengths[phase["sequence_length"]]} for phase in config.get("phases") or ()]

    def shape(phase):
        return {name: value for name, value in phase.items() if name not in ("batch_size", "share", "until_step")}

    following = [*phases[1:], {}][: len(phases)]
    return [phase for phase, after in zip(phases, following, strict=True) if shape(phase) != shape(after)]


def shrink(config) -> None:
    """One step on one device, or one for each phase."""
    config.data.sequence_length = 32
    if phases := kept_phases(config):
        config.phases = tuple(
            phase | {"until_step": number, "share": 0.0, "batch_size": 0, "accumulation_steps": 0, "warmup_steps": 0}
            for number, phase in enumerate(phases, 1)
        )
    config.train.update(
        {"num_steps": max(1, len(phases or ())), "batch_size": 8, "accumulation_steps": 1, "compilation_cache": False}
    )
    config.train.update({name: 8 for name in ("eval_batch_size", "eval_examples") if name in config.train})
    config.parallel.update({"data": 1, "fsdp": 1, "tensor": 1})


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Runs use the first device only, and measure nothing: it is the recipes that are tested here, and quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
        patch.setattr(run, "measured_matmul_flops", lambda *_: 1e12)
        yield


@pytest.fixture(scope="module")
def pretrained(tiny_config, tmp_path_factory) -> Path:
    """The folder of a tiny pretrained run."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    run.run_training(tiny_config(**{"train.num_steps": 1}), folder)
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """Texts with two labels."""
    path = tmp_path_factory.mktemp("labelled") / "rows.jsonl"
    rows = [{"text": f"the {'old' if n % 2 else 'quiet'} river", "text_b": "a ship", "label": n % 2} for n in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Other sizes whose recipes differ in more than the size of the model.
SIZES = [
    ("electra", "base"),
    ("electra", "large"),
    ("modernbert", "large"),
    ("albert", "xxlarge"),
    ("roberta", "large"),
]


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if path.parent.name == "configs"], ids=lambda path: path.stem
)
def test_batches_divide_over_devices(path, monkeypatch):
    """Also those of phases, over as many devices as one machine has."""
    config = load(path, monkeypatch).get_config()
    sizes = [config.train.batch_size, *(phase["batch_size"] for phase in config.get("phases") or ())]
    assert not [size for size in sizes if size % 8]


@pytest.mark.parametrize("name, size", SIZES)
def test_another_size_trains_a_step(name, size, monkeypatch, tmp_path, corpus_dir, request):
    module = load(ROOT / "configs" / f"{name}.py", monkeypatch)
    monkeypatch.setattr(module, "get_config", partial(module.get_config, size))
    train_a_step(module, tmp_path, corpus_dir, request)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_recipe_trains_a_step(path, monkeypatch, tmp_path, corpus_dir, request):
    train_a_step(load(path, monkeypatch), tmp_path, corpus_dir, request)


def train_a_step(module, tmp_path, corpus_dir, request) -> None:
    assert module.__doc__ and re.search(r"hardware", module.__doc__, re.IGNORECASE), "the docstring names no hardware"
    config = module.get_config()
    shrink(config)
    if config.task == "pretraining":
        if config.model.hidden_size is None:  # that of another run
            config.init_from = str(request.getfixturevalue("pretrained"))
        else:
            shrink_model(config.model)
        config.data.corpus = str(corpus_dir)
        if "distillation" in (config.objectives or ()):
            sizes = {f"model.{name}": config.model[name] for name in ("hidden_size", "num_heads", "intermediate_size")}
            teacher = request.getfixturevalue("tiny_config")(objectives=("mlm",), **sizes, **{"train.num_steps": 1})
            run.run_training(teacher, tmp_path / "teacher")
            config.options.distillation.folder = config.init_from = str(tmp_path / "teacher")
            config.init_layers = (0, 1)
    elif config.task == "text":
        config.init_from = str(request.getfixturevalue("pretrained"))
        config.data.train = config.data.validation = str(request.getfixturevalue("labelled"))
    elif config.task == "glue":
        config.init_from, config.data.dir = str(request.getfixturevalue("pretrained")), str(tmp_path)
        for split in ("train", "dev"):
            write_split(tmp_path, config.data.name, split)
    elif config.task == "qa":
        config.init_from = str(request.getfixturevalue("pretrained"))
        config.data.update({"sequence_length": 24, "max_query_length": 8, "doc_stride": 4})
        write_questions(tmp_path / "squad.json", [("where is the ship", "the ship is on the river", "on the river")])
        config.data.train = config.data.validation = str(tmp_path / "squad.json")
    elif config.task == "tokens":
        config.init_from = str(request.getfixturevalue("pretrained"))
        (tmp_path / "words").write_text("the O\nriver B-place\n\na O\nship O\n")
        config.data.train = config.data.validation = str(tmp_path / "words")
    else:
        pytest.fail(f"task {config.task!r}: say here how to give it tiny data")
    evaluation = run.run_training(config.lock(), tmp_path / "run")
    assert math.isfinite(evaluation["loss"])
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = config.train.num_steps
    assert [row["step"] for row in rows] == [last, last] and math.isfinite(rows[0]["loss"])
    assert (tmp_path / "run" / "checkpoints" / str(last)).is_dir()

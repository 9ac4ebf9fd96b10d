"""Ways to use a pretrained encoder: fewer layers, fresh layers, a mean of all layers, and how it began."""

import dataclasses
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from bert_jax.conversion import convert as conversion
from bert_jax.errors import UserError
from bert_jax.library import load
from bert_jax.parallel import hosts
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks import text
from bert_jax.train.loop import Stopped
from bert_jax.trained import load_predictor
from tests.tasks.test_text import TEXTS, write_rows
from tools.linear_models import features


@pytest.fixture
def config(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", ["river" if "river" in words else "none" for words in TEXTS])
    return text.Config(data=text.DataConfig(train=path, validation=path))


def parameters(folder):
    return jax.device_get(load_predictor(run_folder.get_config(str(folder)), folder, None)[1])


AT_ONCE = {"num_epochs": 0.1, "optimizer.learning_rate": 1e-12}  # one step that hardly changes anything


def close(left, right) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-6), left, right)))


def first(layers, count):
    return jax.tree.map(lambda array: array[:count], layers)


def test_the_first_layers_alone(train, config, tiny_bert):
    _, workdir = train(config, **AT_ONCE, **{"model.num_layers": 1})
    given, found = (parameters(folder)["encoder"] for folder in (tiny_bert, workdir))
    assert close(found["layers"], first(given["layers"], 1)) and close(found["pooler"], given["pooler"])
    assert jax.tree.leaves(found["layers"])[0].shape[0] == 1
    with pytest.raises(UserError, match=r"model.num_layers=9: the model is that of"):
        train(config, "more", **{"model.num_layers": 9})


def test_the_last_layers_may_start_anew(train, config, tiny_bert):
    num_layers = run_folder.read_config(tiny_bert)["model"]["num_layers"]
    _, workdir = train(config, **AT_ONCE, reinit_layers=1)
    given, found = (parameters(folder)["encoder"] for folder in (tiny_bert, workdir))
    assert close(first(found["layers"], num_layers - 1), first(given["layers"], num_layers - 1))
    last, before = (np.asarray(part["layers"]["mlp"]["up"]["kernel"][-1]) for part in (found, given))
    assert not np.allclose(last, before) and 0.01 < last.std() < 0.03, "the last layer is not drawn anew"
    assert not close(found["pooler"], given["pooler"]) and close(found["embeddings"], given["embeddings"])
    with pytest.raises(UserError, match=f"reinit_layers={num_layers + 1} must be from 0 to {num_layers}"):
        train(config, "more", reinit_layers=num_layers + 1)


@pytest.mark.slow
def test_a_learned_mean_of_all_layers(train, config, tiny_bert, tmp_path):
    settings = {"model.scalar_mix": True, "num_epochs": 30.0, "optimizer.learning_rate": 1e-2}
    scores, workdir = train(config, **settings, **{"model.classifier": "tanh"})
    assert scores["accuracy"] > 0.9
    weights = parameters(workdir)["encoder"]["mix"]["weights"]
    assert (
        len(weights) == run_folder.read_config(tiny_bert)["model"]["num_layers"] + 1 and len(set(weights.tolist())) > 1
    )
    with pytest.raises(UserError, match=r"no family of Hugging Face's format computes this encoder: .*scalar_mix"):
        conversion.export_run(workdir, tmp_path / "hf")


def test_a_run_says_how_it_was_started(train, config):
    _, workdir = train(config, num_epochs=1.0)
    train(config, num_epochs=1.0)  # it is complete: nothing starts
    (first_start,) = map(json.loads, (workdir / "starts.jsonl").read_text().splitlines())
    assert first_start["step"] == 0 and first_start["packages"]["jax"] == jax.__version__ and first_start["command"]


MESH = {"parallel.data": 2, "parallel.fsdp": 4, "train.batch_size": 8}


@pytest.mark.parametrize("way", [{"reinit_layers": 1}, {"model.num_layers": 1, "reinit_layers": 1}])
def test_layers_are_taken_and_drawn_over_a_mesh(way, train, config):
    _, alone = train(config, "alone", **AT_ONCE, **way)
    _, over_mesh = train(config, "mesh", **AT_ONCE, **way, **MESH)
    assert close(parameters(alone), parameters(over_mesh))


def test_what_is_not_trained_is_no_way(train, config):
    frozen = {"model.scalar_mix": True, "optimizer.trainable": "heads/"}
    with pytest.raises(UserError, match=r"model.scalar_mix: optimizer.trainable='heads/' leaves it out; add '\|mix/'"):
        train(config, **frozen)
    with pytest.raises(UserError, match=r"optimizer.layer_decay: optimizer.trainable leaves out all layers"):
        train(config, **{"optimizer.layer_decay": 0.5, "optimizer.trainable": "heads/"})
    _, workdir = train(config, **AT_ONCE, **frozen | {"optimizer.trainable": "heads/|mix/"})
    assert "mix" in parameters(workdir)["encoder"]


class StopsAt:
    """In the place of SIGTERM: told to stop when asked for the `number`-th time; the first is before any step."""

    def __init__(self, number):
        self.number, self.asked = number, -1

    def requested(self):
        self.asked += 1
        return self.asked == self.number


LAYERWISE = {"optimizer.layer_decay": 0.5, "optimizer.unfreeze_at": "0.6:layers/0/", "num_epochs": 2.0}


def test_layerwise_rates_go_on_as_they_were(train, config, monkeypatch):
    _, whole = train(config, "whole", **LAYERWISE)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(hosts, "stop_signal", lambda: StopsAt(3))
        train(config, "stopped", **LAYERWISE)
    _, resumed = train(config, "stopped", **LAYERWISE)
    assert [row["step"] for row in map(json.loads, (resumed / "starts.jsonl").read_text().splitlines())] == [0, 3]
    jax.tree.map(np.testing.assert_array_equal, parameters(whole), parameters(resumed))


def test_a_signal_between_two_runs_is_heard(train, config, monkeypatch, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    hosts.stop_signal.cache_clear()
    try:
        train(config, "first", **AT_ONCE)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            train(config, "second", **AT_ONCE)
    finally:
        signal.signal(signal.SIGTERM, handler)
        hosts.stop_signal.cache_clear()
    assert not (tmp_path / "second" / "config.json").exists()


def test_a_run_starts_from_the_best_checkpoint_of_another(train, config, tmp_path):
    every_step = {"num_epochs": 1.0, "train.eval_every": 1, "checkpoint.every": 1}
    _, origin = train(config, "origin", **every_step)
    path = origin / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    last = rows[-1]["step"]
    for row in rows:
        if "eval/accuracy" in row:
            row["eval/accuracy"] = float(row["step"] == last - 1)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, workdir = train(config, "next", **AT_ONCE, init_from=str(origin))
    best, newest = (
        jax.device_get(load_predictor(run_folder.get_config(str(origin)), origin, step)[1]) for step in (last - 1, last)
    )
    found = parameters(workdir)["encoder"]
    assert close(found, best["encoder"]) and not close(found, newest["encoder"])


def test_what_a_run_began_with_stays(train, config, tiny_bert, tmp_path):
    _, workdir = train(config, **AT_ONCE)
    before = (workdir / "config.json").read_text()
    other = shutil.copytree(tiny_bert, tmp_path / "other")
    for change in ({"init_from": str(other)}, {"from_scratch": True}, {"reinit_layers": 1}):
        with pytest.raises(UserError, match=f"holds another run .{next(iter(change))} is"):
            train(config, **AT_ONCE | change)
    train(config, **AT_ONCE | {"optimizer.learning_rate": 1.0})  # nothing is left to train with it
    assert (workdir / "config.json").read_text() == before


@pytest.mark.parametrize("layer", [-1, 1])
def test_features_are_those_of_each_text_alone(config, tiny_bert, tmp_path, layer):
    encoder = load(tiny_bert)
    task = text.Task.create(
        dataclasses.replace(
            config,
            init_from=str(tiny_bert),
            model=encoder.model.config,
            data=dataclasses.replace(config.data, sequence_length=16),
        ),
        tmp_path / "none",
    )
    found = features(task, encoder.model, encoder.params, task.training_items, layer)
    np.testing.assert_allclose(found, encoder.encode(TEXTS, layer=layer), atol=1e-5)

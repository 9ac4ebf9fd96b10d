"""Ways to use a pretrained encoder: fewer layers, fresh layers, a mean of all layers, and how it began."""

import json

import jax
import numpy as np
import pytest

from bert_jax import conversion, run_folder
from bert_jax.errors import UserError
from bert_jax.run import load_predictor
from bert_jax.tasks import text
from tests.tasks.test_text import TEXTS, write_rows


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
    _, workdir = train(config, **AT_ONCE, fresh_layers=1)
    given, found = (parameters(folder)["encoder"] for folder in (tiny_bert, workdir))
    assert close(first(found["layers"], num_layers - 1), first(given["layers"], num_layers - 1))
    last, before = (np.asarray(part["layers"]["mlp"]["up"]["kernel"][-1]) for part in (found, given))
    assert not np.allclose(last, before) and 0.01 < last.std() < 0.03, "the last layer is not drawn anew"
    assert not close(found["pooler"], given["pooler"]) and close(found["embeddings"], given["embeddings"])
    with pytest.raises(UserError, match=f"fresh_layers={num_layers + 1}: 0 to {num_layers}"):
        train(config, "more", fresh_layers=num_layers + 1)


def test_a_learned_mean_of_all_layers(train, config, tiny_bert, tmp_path):
    settings = {"model.layer_mix": True, "num_epochs": 30.0, "optimizer.learning_rate": 1e-2}
    scores, workdir = train(config, **settings, **{"model.classifier": "tanh"})
    assert scores["accuracy"] > 0.9
    weights = parameters(workdir)["encoder"]["mix"]["weights"]
    assert (
        len(weights) == run_folder.read_config(tiny_bert)["model"]["num_layers"] + 1 and len(set(weights.tolist())) > 1
    )
    with pytest.raises(UserError, match=r"no family of Hugging Face's computes this encoder: .*layer_mix"):
        conversion.export_run(workdir, tmp_path / "hf")


def test_a_run_says_how_it_was_started(train, config):
    _, workdir = train(config, num_epochs=1.0)
    train(config, num_epochs=1.0)
    first_start, second = map(json.loads, (workdir / "starts.jsonl").read_text().splitlines())
    assert (first_start["step"], second["step"]) == (0, run_folder.read_config(workdir)["train"]["num_steps"])
    assert first_start["packages"]["jax"] == jax.__version__ and first_start["command"]


def test_layers_are_taken_and_drawn_over_a_mesh(train, config):
    mesh = {"parallel.data": 2, "parallel.fsdp": 2, "parallel.tensor": 2, "train.batch_size": 8}
    scores, workdir = train(config, "fresh", num_epochs=1.0, fresh_layers=1, **mesh)
    alone, _ = train(config, "fewer", num_epochs=1.0, **mesh, **{"model.num_layers": 1})
    assert np.isfinite([scores["loss"], alone["loss"]]).all() and (workdir / "checkpoints").is_dir()

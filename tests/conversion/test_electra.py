"""A run of replaced-token detection becomes two models: a discriminator and its generator, here and in transformers."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import bert_jax
from bert_jax import run
from bert_jax.conversion import convert as conversion
from bert_jax.parallel.mesh import make_mesh
from bert_jax.run_folder.checkpoints import CheckpointStore
from bert_jax.tasks import base as tasks
from bert_jax.train.step import Training

ELECTRA = {
    "objectives": ("rtd",),
    "options.rtd.generator_size": 0.5,
    "model.embedding_size": 24,
    "model.pooler": False,
    "model.head_activation": "gelu",
    "model.classifier": "gelu",
    "train.num_steps": 2,
    "optimizer.learning_rate": 1e-2,
}


@pytest.fixture(scope="module")
def electra(tiny_config, tmp_path_factory):
    """The folder of a run, and of its export."""
    folder = tmp_path_factory.mktemp("electra")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
        patch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)
        run.run_training(tiny_config(**ELECTRA), folder / "run")
    assert conversion.export_run(folder / "run", folder / "exported") < 1e-4
    return folder / "run", folder / "exported"


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    mask = (np.arange(16) < np.array([16, 9])[:, None]).astype(np.int32)
    return {"input_ids": rng.integers(5, 100, (2, 16)).astype(np.int32) * mask, "attention_mask": mask}


@pytest.mark.slow
def test_both_models_are_exported(electra, inputs):
    _, exported = electra
    configs = [json.loads((folder / "config.json").read_text()) for folder in (exported, exported / "generator")]
    assert [config["architectures"] for config in configs] == [["ElectraForPreTraining"], ["ElectraForMaskedLM"]]
    assert [config["hidden_size"] for config in configs] == [32, 16]
    assert [config["embedding_size"] for config in configs] == [24, 24]
    tables = [
        bert_jax.load(folder).params["encoder"]["embeddings"]["tokens"]["embedding"]
        for folder in (exported, exported / "generator")
    ]
    np.testing.assert_array_equal(*tables)


@pytest.mark.slow
def test_the_run_gives_the_discriminators_logits(electra, inputs):
    folder, exported = electra
    ours, reloaded = bert_jax.load(folder)(**inputs).logits, bert_jax.load(exported)(**inputs).logits
    assert ours.keys() == reloaded.keys() == {"rtd"}
    np.testing.assert_allclose(ours["rtd"], reloaded["rtd"], atol=1e-5)


def test_the_run_fills_masks_with_its_generator(electra):
    folder, exported = electra
    predictor, text = bert_jax.Predictor.load(folder), "the old [MASK] watched the river"
    (answer,) = predictor.predict([text])
    generator = bert_jax.load(exported / "generator")
    tokenizer = generator.tokenizer
    ids = tokenizer.encode_with_masks(text)
    ids = np.array([[tokenizer.cls_id, *ids, tokenizer.sep_id]])
    logits = generator(ids).logits["mlm"][0, int(np.flatnonzero(ids[0] == tokenizer.mask_id)[0])]
    probabilities = np.asarray(jax.nn.softmax(logits[: tokenizer.vocab_size]))
    best = np.argsort(-probabilities)[:5]
    assert [entry["token"] for entry in answer["masks"][0]] == tokenizer.tokens(best)
    np.testing.assert_allclose([entry["probability"] for entry in answer["masks"][0]], probabilities[best], rtol=1e-4)
    assert predictor.task.generator is predictor.task.generator, "compiled again for each call"


def test_heads_that_are_chosen_come_without_the_generator(electra, tmp_path):
    folder, _ = electra
    conversion.export_run(folder, tmp_path / "encoder", wanted_heads=())
    assert not (tmp_path / "encoder" / "generator").exists()
    assert set(bert_jax.load(tmp_path / "encoder").model.heads) == set()


def test_transformers_computes_the_same(electra, inputs, torch, transformers):
    _, exported = electra
    tensors = {name: torch.from_numpy(array).long() for name, array in inputs.items()}
    mask = inputs["attention_mask"] > 0
    for folder, name, head in (
        (exported, "ElectraForPreTraining", "rtd"),
        (exported / "generator", "ElectraForMaskedLM", "mlm"),
    ):
        model = getattr(transformers, name).from_pretrained(folder, attn_implementation="eager").eval()
        with torch.no_grad():
            logits = model(**tensors).logits.numpy()
        ours = np.asarray(bert_jax.load(folder)(**inputs).logits[head])
        np.testing.assert_allclose(ours[mask], logits[mask], atol=1e-4, err_msg=name)


def test_fine_tuning_starts_from_the_discriminator(electra, tmp_path, monkeypatch):
    folder, _ = electra
    rows = [{"text": "the old river" if n % 2 else "a quiet ship", "label": str(n % 2)} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "task": "text",
        "init_from": str(folder),
        "data": {name: str(tmp_path / "rows.jsonl") for name in ("train", "validation")} | {"sequence_length": 16},
        "train": {"num_steps": 1, "batch_size": 8, "compilation_cache": False},
        "optimizer": {"learning_rate": 0.0, "weight_decay": 0.0},
    }
    monkeypatch.setattr(run, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
    monkeypatch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)

    run.run_training(ConfigDict(values), tmp_path / "tuned")
    stores = CheckpointStore(folder), CheckpointStore(tmp_path / "tuned")
    before, after = (store.restore({"params": store.structure("params")})[1]["params"]["encoder"] for store in stores)
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_going_on_from_a_run(electra, tiny_config, tmp_path):
    """Both models are taken from it."""
    folder, _ = electra
    task = tasks.create(tiny_config(**ELECTRA, init_from=str(folder)), tmp_path / "new")
    mesh = make_mesh(task.config.parallel, jax.devices()[:1])
    with jax.set_mesh(mesh):
        training = Training.of(task.losses, task.config, mesh)
        store = CheckpointStore(tmp_path / "new", task.config.checkpoint)
        _, state = run.starting_state(task, training, store, mesh, run.initial_model(task, tmp_path / "new"))
    jax.tree.map(np.testing.assert_array_equal, state["params"], bert_jax.load(folder).params)

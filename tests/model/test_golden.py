"""Hidden states and logits equal those of Hugging Face's BERT on random weights (golden cases beside the project)."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from bert_jax.model.build import Model
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import MaskedLMHead, PooledClassifier

pytestmark = pytest.mark.real
TOLERANCE = 2e-5

# Hugging Face name -> our path; {i} is the layer, and what has none is not stacked.
PLAIN = {
    "bert.embeddings.word_embeddings.weight": "encoder/embeddings/tokens/embedding",
    "bert.embeddings.position_embeddings.weight": "encoder/embeddings/positions/embedding",
    "bert.embeddings.token_type_embeddings.weight": "encoder/embeddings/token_types/embedding",
    "bert.embeddings.LayerNorm": "encoder/embeddings/norm",
    "bert.encoder.layer.{i}.attention.output.LayerNorm": "encoder/layers/attention_norm",
    "bert.encoder.layer.{i}.intermediate.dense": "encoder/layers/mlp/up",
    "bert.encoder.layer.{i}.output.dense": "encoder/layers/mlp/down",
    "bert.encoder.layer.{i}.output.LayerNorm": "encoder/layers/mlp_norm",
    "bert.pooler.dense": "encoder/pooler",
    "cls.predictions.transform.dense": "heads/mlm/dense",
    "cls.predictions.transform.LayerNorm": "heads/mlm/norm",
    "cls.predictions.bias": "heads/mlm/bias",
    "cls.seq_relationship": "heads/nsp/dense",
    "classifier": "heads/classification/dense",
}
ATTENTION = "bert.encoder.layer.{i}.attention"


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file: a length, a JSON header, the numbers (float32 here)."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data[start:][slice(*entry["data_offsets"])], np.float32).reshape(entry["shape"])
        for name, entry in header.items()
    }


def converted(weights: dict[str, np.ndarray], num_layers: int, num_heads: int) -> dict[str, np.ndarray]:
    """Our flat parameters, path -> array."""

    def layers(pattern: str, change=lambda x: x) -> np.ndarray:
        if "{i}" not in pattern:
            return change(weights[pattern])
        return np.stack([change(weights[pattern.format(i=i)]) for i in range(num_layers)])

    flat = {}
    for name, path in PLAIN.items():
        if name.format(i=0) in weights:
            flat[path] = layers(name)
        elif name.format(i=0) + ".weight" in weights:
            is_norm = "LayerNorm" in name
            flat[f"{path}/{'scale' if is_norm else 'kernel'}"] = layers(f"{name}.weight", lambda x: x.T)
            flat[f"{path}/bias"] = layers(f"{name}.bias")
    qkv = [f"{ATTENTION}.self.{part}" for part in ("query", "key", "value")]
    heads = (num_heads, -1)
    kernels = [layers(f"{part}.weight", lambda x: x.T.reshape(len(x), *heads)) for part in qkv]
    flat["encoder/layers/attention/qkv/kernel"] = np.stack(kernels, axis=2)
    biases = [layers(f"{part}.bias", lambda x: x.reshape(heads)) for part in qkv]
    flat["encoder/layers/attention/qkv/bias"] = np.stack(biases, axis=1)
    out = f"{ATTENTION}.output.dense"
    flat["encoder/layers/attention/out/kernel"] = layers(f"{out}.weight", lambda x: x.T.reshape(*heads, len(x)))
    flat["encoder/layers/attention/out/bias"] = layers(f"{out}.bias")
    return flat


@pytest.fixture(params=["masked_lm", "pretraining", "sequence_classification"])
def case(request, oracle):
    """(model, parameters, golden inputs and outputs)."""
    folder = oracle / "hf" / "bert" / request.param
    released = json.loads((folder / "config.json").read_text())
    weights = read_safetensors(folder / "model.safetensors")
    config = EncoderConfig(
        vocab_size=released["vocab_size"],
        hidden_size=released["hidden_size"],
        num_layers=released["num_hidden_layers"],
        num_heads=released["num_attention_heads"],
        intermediate_size=released["intermediate_size"],
        max_positions=released["max_position_embeddings"],
        norm_epsilon=released["layer_norm_eps"],
        pooler="bert.pooler.dense.weight" in weights,
    )
    heads = {
        "masked_lm": {"mlm": MaskedLMHead},
        "pretraining": {"mlm": MaskedLMHead, "nsp": lambda c, rngs: PooledClassifier(c, 2, 0.0, rngs)},
        "sequence_classification": {"classification": lambda c, rngs: PooledClassifier(c, 3, 0.0, rngs)},
    }[request.param]
    model = Model.build(config, heads)
    flat = converted(weights, config.num_layers, config.num_heads)
    paths, tree = jax.tree.flatten_with_path(model.abstract)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    assert set(names) == set(flat), "the table and the model name different parameters"
    for name, (_, array) in zip(names, paths, strict=True):
        assert flat[name].shape == array.shape, f"{name}: {flat[name].shape} for {array.shape}"
    return model, tree.unflatten([flat[name] for name in names]), dict(np.load(folder / "io.npz"))


def test_equal_to_the_reference(case):
    model, params, golden = case

    @jax.jit
    def forward(params):
        bound = model.bind(params)
        inputs = (golden["input_ids"], golden["attention_mask"], golden["token_type_ids"])
        output = bound.encoder(*inputs, all_hidden_states=True)
        logits = {}
        for name, head in bound.heads.items():
            is_mlm = name == "mlm"
            table = bound.encoder.embeddings.tokens.embedding[...]
            logits[name] = head(output.last_hidden_state, table) if is_mlm else head(output.pooled)
        return output.hidden_states, logits

    hidden_states, logits = forward(params)
    is_token = golden["attention_mask"] > 0  # states of padding mean nothing

    def compare(ours, theirs, what):
        difference = np.abs(np.asarray(ours) - theirs).max()
        assert difference <= TOLERANCE, f"{what} differs from the reference by {difference:.2e}"

    for number, state in enumerate(hidden_states):
        compare(state[is_token], golden[f"hidden_{number}"][is_token], f"hidden state {number} (0 is the embeddings)")
    if "mlm" in logits:
        theirs = golden["prediction_logits" if "nsp" in logits else "logits"]
        compare(logits["mlm"][is_token], theirs[is_token], "MLM logits")
    if "nsp" in logits:
        compare(logits["nsp"], golden["seq_relationship_logits"], "NSP logits")
    if "classification" in logits:
        compare(logits["classification"], golden["logits"], "classification logits")

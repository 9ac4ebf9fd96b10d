"""The original TensorFlow checkpoints: written here with tensorflow under the names of Google's code, then imported."""

import json
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import bert_jax
from bert_jax.conversion import convert as conversion
from bert_jax.conversion import parity as conversion_gate
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.formats import huggingface
from bert_jax.formats.tensorflow1 import RELEASES, huggingface_name, read_release
from tests.hostile.limits import accepted_or_refused

GOLDEN = Path(__file__).parents[1] / "golden"
# The variables that google-research/bert run_pretraining.py and google-research/albert run_pretraining.py save, by the
# tensors that transformers made of them; {} are numbers.
BERT = {
    "bert/embeddings/word_embeddings": "bert.embeddings.word_embeddings.weight",
    "bert/embeddings/position_embeddings": "bert.embeddings.position_embeddings.weight",
    "bert/embeddings/token_type_embeddings": "bert.embeddings.token_type_embeddings.weight",
    "bert/embeddings/LayerNorm/gamma": "bert.embeddings.LayerNorm.weight",
    "bert/embeddings/LayerNorm/beta": "bert.embeddings.LayerNorm.bias",
    "bert/encoder/layer_{}/attention/self/query/kernel": "bert.encoder.layer.{}.attention.self.query.weight",
    "bert/encoder/layer_{}/attention/self/query/bias": "bert.encoder.layer.{}.attention.self.query.bias",
    "bert/encoder/layer_{}/attention/self/key/kernel": "bert.encoder.layer.{}.attention.self.key.weight",
    "bert/encoder/layer_{}/attention/self/key/bias": "bert.encoder.layer.{}.attention.self.key.bias",
    "bert/encoder/layer_{}/attention/self/value/kernel": "bert.encoder.layer.{}.attention.self.value.weight",
    "bert/encoder/layer_{}/attention/self/value/bias": "bert.encoder.layer.{}.attention.self.value.bias",
    "bert/encoder/layer_{}/attention/output/dense/kernel": "bert.encoder.layer.{}.attention.output.dense.weight",
    "bert/encoder/layer_{}/attention/output/dense/bias": "bert.encoder.layer.{}.attention.output.dense.bias",
    "bert/encoder/layer_{}/attention/output/LayerNorm/gamma": "bert.encoder.layer.{}.attention.output.LayerNorm.weight",
    "bert/encoder/layer_{}/attention/output/LayerNorm/beta": "bert.encoder.layer.{}.attention.output.LayerNorm.bias",
    "bert/encoder/layer_{}/intermediate/dense/kernel": "bert.encoder.layer.{}.intermediate.dense.weight",
    "bert/encoder/layer_{}/intermediate/dense/bias": "bert.encoder.layer.{}.intermediate.dense.bias",
    "bert/encoder/layer_{}/output/dense/kernel": "bert.encoder.layer.{}.output.dense.weight",
    "bert/encoder/layer_{}/output/dense/bias": "bert.encoder.layer.{}.output.dense.bias",
    "bert/encoder/layer_{}/output/LayerNorm/gamma": "bert.encoder.layer.{}.output.LayerNorm.weight",
    "bert/encoder/layer_{}/output/LayerNorm/beta": "bert.encoder.layer.{}.output.LayerNorm.bias",
    "bert/pooler/dense/kernel": "bert.pooler.dense.weight",
    "bert/pooler/dense/bias": "bert.pooler.dense.bias",
    "cls/predictions/transform/dense/kernel": "cls.predictions.transform.dense.weight",
    "cls/predictions/transform/dense/bias": "cls.predictions.transform.dense.bias",
    "cls/predictions/transform/LayerNorm/gamma": "cls.predictions.transform.LayerNorm.weight",
    "cls/predictions/transform/LayerNorm/beta": "cls.predictions.transform.LayerNorm.bias",
    "cls/predictions/output_bias": "cls.predictions.bias",
    "cls/seq_relationship/output_weights": "cls.seq_relationship.weight",
    "cls/seq_relationship/output_bias": "cls.seq_relationship.bias",
}
_OURS = "bert/encoder/transformer/group_{}/inner_group_{}"
_THEIRS = "albert.encoder.albert_layer_groups.{}.albert_layers.{}"
ALBERT = {
    "bert/embeddings/word_embeddings": "albert.embeddings.word_embeddings.weight",
    "bert/embeddings/position_embeddings": "albert.embeddings.position_embeddings.weight",
    "bert/embeddings/token_type_embeddings": "albert.embeddings.token_type_embeddings.weight",
    "bert/embeddings/LayerNorm/gamma": "albert.embeddings.LayerNorm.weight",
    "bert/embeddings/LayerNorm/beta": "albert.embeddings.LayerNorm.bias",
    "bert/encoder/embedding_hidden_mapping_in/kernel": "albert.encoder.embedding_hidden_mapping_in.weight",
    "bert/encoder/embedding_hidden_mapping_in/bias": "albert.encoder.embedding_hidden_mapping_in.bias",
    f"{_OURS}/attention_1/self/query/kernel": f"{_THEIRS}.attention.query.weight",
    f"{_OURS}/attention_1/self/query/bias": f"{_THEIRS}.attention.query.bias",
    f"{_OURS}/attention_1/self/key/kernel": f"{_THEIRS}.attention.key.weight",
    f"{_OURS}/attention_1/self/key/bias": f"{_THEIRS}.attention.key.bias",
    f"{_OURS}/attention_1/self/value/kernel": f"{_THEIRS}.attention.value.weight",
    f"{_OURS}/attention_1/self/value/bias": f"{_THEIRS}.attention.value.bias",
    f"{_OURS}/attention_1/output/dense/kernel": f"{_THEIRS}.attention.dense.weight",
    f"{_OURS}/attention_1/output/dense/bias": f"{_THEIRS}.attention.dense.bias",
    f"{_OURS}/LayerNorm/gamma": f"{_THEIRS}.attention.LayerNorm.weight",
    f"{_OURS}/LayerNorm/beta": f"{_THEIRS}.attention.LayerNorm.bias",
    f"{_OURS}/ffn_1/intermediate/dense/kernel": f"{_THEIRS}.ffn.weight",
    f"{_OURS}/ffn_1/intermediate/dense/bias": f"{_THEIRS}.ffn.bias",
    f"{_OURS}/ffn_1/intermediate/output/dense/kernel": f"{_THEIRS}.ffn_output.weight",
    f"{_OURS}/ffn_1/intermediate/output/dense/bias": f"{_THEIRS}.ffn_output.bias",
    f"{_OURS}/LayerNorm_1/gamma": f"{_THEIRS}.full_layer_layer_norm.weight",
    f"{_OURS}/LayerNorm_1/beta": f"{_THEIRS}.full_layer_layer_norm.bias",
    "bert/pooler/dense/kernel": "albert.pooler.weight",
    "bert/pooler/dense/bias": "albert.pooler.bias",
    "cls/predictions/transform/dense/kernel": "predictions.dense.weight",
    "cls/predictions/transform/dense/bias": "predictions.dense.bias",
    "cls/predictions/transform/LayerNorm/gamma": "predictions.LayerNorm.weight",
    "cls/predictions/transform/LayerNorm/beta": "predictions.LayerNorm.bias",
    "cls/predictions/output_bias": "predictions.bias",
    "cls/seq_relationship/output_weights": "sop_classifier.classifier.weight",
    "cls/seq_relationship/output_bias": "sop_classifier.classifier.bias",
}
CASES = {"bert_config.json": ("bert/pretraining", BERT), "albert_config.json": ("albert/pretraining", ALBERT)}
OF_TRANSFORMERS_ALONE = {"architectures", "model_type", "layer_norm_eps"}


@pytest.mark.parametrize("file", CASES)
def test_names_of_the_variables(file):
    for variable, tensor in CASES[file][1].items():
        assert huggingface_name(variable.replace("{}", "3"), RELEASES[file]) == tensor.replace("{}", "3")


@pytest.mark.parametrize("file", CASES)
def test_names_of_fine_tuned_heads(file):
    names = ["output_weights", "output_bias", "cls/squad/output_weights", "cls/squad/output_bias"]
    found = [huggingface_name(name, RELEASES[file]) for name in names]
    assert found == ["classifier.weight", "classifier.bias", "qa_outputs.weight", "qa_outputs.bias"]


def variables(case: str, names: dict[str, str]) -> dict[str, np.ndarray]:
    """The golden tensors as Google's code saves them; with what its optimizer leaves."""
    tensors = load_file(GOLDEN / case / "model.safetensors")
    saved = {"global_step": np.int64(7)}
    for variable, tensor in names.items():
        pattern = re.escape(tensor).replace(r"\{\}", r"(\d+)")
        for name, array in tensors.items():
            if match := re.fullmatch(pattern, name):
                array = array.T if variable.endswith("/kernel") else array
                saved[variable.format(*match.groups())] = array
    return saved | {f"{name}/adam_{slot}": array * 0 for name, array in list(saved.items())[1:] for slot in "mv"}


@pytest.fixture
def released(tensorflow, tmp_path):
    """`released('bert_config.json')`: the prefix of a checkpoint in a folder as its authors gave it to the world."""

    def make(file: str, **changes: np.ndarray) -> Path:
        case, names = CASES[file]
        arrays = {name: array for name, array in (variables(case, names) | changes).items() if array is not None}
        prefix = tmp_path / "released" / "model.ckpt"
        prefix.parent.mkdir(exist_ok=True)
        values = [tensorflow.constant(np.ascontiguousarray(array)) for array in arrays.values()]
        tensorflow.raw_ops.SaveV2(
            prefix=str(prefix), tensor_names=list(arrays), shape_and_slices=[""] * len(arrays), tensors=values
        )
        config = json.loads((GOLDEN / case / "config.json").read_text())
        config = {name: value for name, value in config.items() if name not in OF_TRANSFORMERS_ALONE}
        (prefix.parent / file).write_text(json.dumps(config | {"hidden_act": "gelu"}))
        Tokenizer.train(["the old river and a quiet ship"] * 3, 48).save(tmp_path / "tokenizer")
        shutil.copy(tmp_path / "tokenizer" / "vocab.txt", prefix.parent)
        return prefix

    return make


@pytest.mark.parametrize("file", CASES)
def test_import(file, released, tmp_path):
    """The weights bit for bit, and gelu by its tanh approximation, as their code has it."""
    prefix, (case, _) = released(file), CASES[file]
    assert conversion.import_run(prefix, tmp_path / "run", tensorflow=True) < conversion_gate.TOLERANCE
    imported = bert_jax.load(tmp_path / "run")
    config = json.loads((GOLDEN / case / "config.json").read_text()) | {"hidden_act": "gelu_new"}
    same = huggingface.inspect(GOLDEN / case, config=config)
    assert imported.model.config == same.model.config
    assert imported.model.config.activation == "gelu_tanh"
    jax.tree.map(np.testing.assert_array_equal, imported.params, huggingface.load_params(same))


def test_albert_equals_the_reference(released, tmp_path):
    prefix = released("albert_config.json")
    conversion.import_run(prefix, tmp_path / "run", tensorflow=True)
    golden = np.load(GOLDEN / "albert" / "pretraining" / "io.npz")
    output = bert_jax.load(tmp_path / "run")(
        *(golden[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
    )
    is_token = golden["attention_mask"] > 0
    for ours, theirs in (("mlm", "prediction_logits"), ("sop", "sop_logits")):
        mine, reference = np.asarray(output.logits[ours]), golden[theirs]
        if ours == "mlm":
            mine, reference = mine[is_token], reference[is_token]
        np.testing.assert_allclose(mine, reference, atol=2e-5)


def test_without_tensorflow(tmp_path, monkeypatch):
    (tmp_path / "bert_config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match="only tensorflow can read it; pip install tensorflow-cpu"):
        read_release(tmp_path / "model.ckpt")


def test_what_is_refused(released, tmp_path):
    with pytest.raises(UserError, match=r"needs one of bert_config.json and albert_config.json next to the checkpoint"):
        read_release(tmp_path / "model.ckpt")
    prefix = released(
        "bert_config.json", **{"bert/pooler/dense/bias": None, "bert/new/kernel": np.ones((2, 3), np.float32)}
    )
    with pytest.raises(UserError, match=r"missing bert.pooler.dense.bias; unknown bert.new.weight"):
        conversion.import_run(prefix, tmp_path / "run", tensorflow=True)
    with pytest.raises(UserError, match=r"other\.ckpt\.index: missing; get the checkpoint again"):
        read_release(prefix.with_name("other.ckpt"))
    prefix = released("bert_config.json")
    data = next(prefix.parent.glob("model.ckpt.data-*"))
    data.write_bytes(data.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"variable .*: damaged .*; get the checkpoint again"):
        conversion.import_run(prefix, tmp_path / "run", tensorflow=True)
    (prefix.parent / "bert_config.json").write_text("{")
    with pytest.raises(UserError, match=r"bert_config.json: damaged, or not what is expected"):
        read_release(prefix)
    assert not (tmp_path / "run").exists()


def test_flipped_bytes_are_refused_or_were_never_read(released):
    prefix = released("bert_config.json")
    rng = np.random.default_rng(0)
    for path in sorted(prefix.parent.glob("model.ckpt.*")):
        content = path.read_bytes()
        for place in rng.integers(len(content), size=30):
            path.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
            accepted_or_refused(
                lambda: huggingface.load_params(huggingface.inspect(prefix.parent, (), *read_release(prefix)))
            )
        path.write_bytes(content)

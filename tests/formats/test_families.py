"""Families that have RoBERTa's layout under names of their own, and the names of activations."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

import bert_jax
from bert_jax.config import to_config_dict
from bert_jax.conversion import convert as conversion
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.formats import huggingface_config
from bert_jax.formats.rows import ACTIVATIONS
from bert_jax.model.layers import ACTIVATIONS as FUNCTIONS
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks import base as tasks
from bert_jax.tasks import text

GOLDEN = Path(__file__).parents[1] / "golden"
CLASSES = {"camembert": "Camembert", "xlm-roberta": "XLMRoberta", "data2vec-text": "Data2VecText"}
PREFIXES = {"data2vec-text": "data2vec_text."}
HEADS = {
    "masked_lm": "ForMaskedLM",
    "sequence_classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "question_answering": "ForQuestionAnswering",
    "base": "Model",
}


@pytest.fixture(scope="module")
def bpe_tokenizer() -> Tokenizer:
    return Tokenizer.train(["the old river and a quiet ship"] * 3, 300, kind="bpe")


def renamed(folder: Path, family: str, head: str, **changes) -> Path:
    """The golden RoBERTa as a model of another family, which computes the same."""
    folder.mkdir()
    tensors = load_file(GOLDEN / "roberta" / head / "model.safetensors")
    prefix = PREFIXES.get(family, "roberta.")
    save_file({name.replace("roberta.", prefix): x for name, x in tensors.items()}, folder / "model.safetensors")
    config = json.loads((GOLDEN / "roberta" / head / "config.json").read_text())
    config |= {"model_type": family, "architectures": [CLASSES[family] + HEADS[head]]} | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def outputs(folder: Path, golden) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    output = bert_jax.load(folder)(golden["input_ids"], golden["attention_mask"])
    logits = {name: np.asarray(array) for name, array in output.logits.items()}
    if "qa" in logits:
        logits |= dict(zip(("start_logits", "end_logits"), np.moveaxis(logits.pop("qa"), -1, 0), strict=True))
    return np.asarray(output.hidden_states[-1]), logits


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("head", HEADS)
def test_a_family_with_robertas_layout_computes_what_roberta_does(family, head, tmp_path):
    golden = dict(np.load(GOLDEN / "roberta" / head / "io.npz"))
    hidden, logits = outputs(renamed(tmp_path / "model", family, head), golden)
    is_token = golden["attention_mask"] > 0
    np.testing.assert_allclose(hidden[is_token], golden["hidden_3"][is_token], atol=2e-5)
    assert bool(logits) == (head != "base")
    for name, ours in logits.items():
        theirs = golden[name if name in golden else "logits"]
        both = (ours[is_token], theirs[is_token]) if ours.shape[:2] == is_token.shape else (ours, theirs)
        np.testing.assert_allclose(*both, atol=2e-5)


def add_tokenizer(model: Path, tokenizer: Tokenizer) -> None:
    """Rows for a tokenizer's tokens, and its files."""
    tensors = load_file(model / "model.safetensors")
    rng = np.random.default_rng(0)
    for name, array in tensors.items():
        if array.shape[0] == 53:
            tensors[name] = rng.standard_normal((tokenizer.vocab_size, *array.shape[1:])).astype(np.float32)
    save_file(tensors, model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": tokenizer.vocab_size}))
    tokenizer.save(model)


@pytest.mark.parametrize("family", CLASSES)
def test_a_family_is_exported_under_its_own_name(family, bpe_tokenizer, tmp_path):
    source = renamed(tmp_path / "model", family, "masked_lm", hidden_act="gelu_python")
    add_tokenizer(source, bpe_tokenizer)
    conversion.import_run(source, tmp_path / "run")
    assert run_folder.read_config(tmp_path / "run")["model"]["exported_as"] == family
    conversion.export_run(tmp_path / "run", tmp_path / "exported")
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["model_type"] == family and config["architectures"] == [CLASSES[family] + "ForMaskedLM"]
    assert config["hidden_act"] == "gelu"
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "exported"))
    assert before.keys() == after.keys()
    for name, array in after.items():
        np.testing.assert_array_equal(array, before[name])


def test_a_run_that_is_fine_tuned_from_a_family_keeps_its_name(bpe_tokenizer, tmp_path):
    source = renamed(tmp_path / "model", "camembert", "base")
    add_tokenizer(source, bpe_tokenizer)
    conversion.import_run(source, tmp_path / "run")
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "a ship", "label": "{n % 2}"}}\n' for n in range(8)))
    values = to_config_dict(text.Config())
    changes = {"init_from": str(tmp_path / "run"), "data.sequence_length": 16, "train.num_steps": 1}
    values.update_from_flattened_dict(changes | {"data.train": str(tmp_path / "rows.jsonl")})
    family, config = huggingface_config.family_of(tasks.create(values, tmp_path / "tuned").config.model)
    assert config["model_type"] == "camembert"
    architecture = "CamembertForSequenceClassification"
    assert huggingface_config.architecture_of(family, ("classification",)) == (architecture, ("classification",))


# Ids by hand, as XLMRobertaTokenizer has them: fairseq's four, then the pieces, the mask last.
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁the", "▁", "r", "i", "v", "e", "▁river", "<mask>"]


def unigram_folder(folder: Path) -> Path:
    engine = tokenizers.Tokenizer(tokenizers.models.Unigram([(piece, -float(n)) for n, piece in enumerate(PIECES)], 3))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    engine.decoder = tokenizers.decoders.Metaspace()
    engine.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", tokenizers.AddedToken("<mask>", lstrip=True)])
    engine.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    folder.mkdir(exist_ok=True)
    engine.save(str(folder / "tokenizer.json"))
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    config = {f"{role}_token": token for role, token in names.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "XLMRobertaTokenizer"}))
    return folder


def test_the_tokenizer_of_xlm_roberta(tmp_path):
    """From tokenizer.json; the SentencePiece model alone has other ids, and is refused."""
    source = renamed(tmp_path / "model", "xlm-roberta", "masked_lm")
    add_tokenizer(source, tokenizer := Tokenizer.load(unigram_folder(tmp_path / "tokenizer")))
    unigram_folder(source)
    conversion.import_run(source, tmp_path / "run")
    conversion.export_run(tmp_path / "run", tmp_path / "exported")
    expected = [4, 10, 5, 3, 5, 6, 7]  # "the river x ri"
    for folder in (source, tmp_path / "run" / "tokenizer", tmp_path / "exported"):
        tokenizer = Tokenizer.load(folder)
        assert tokenizer.encode(["the river x ri"])[0].tolist() == expected
        assert (tokenizer.cls_id, tokenizer.pad_id, tokenizer.sep_id, tokenizer.mask_id) == (0, 1, 2, 11)
        assert tokenizer.num_special_tokens(2) == 4
    for path in source.glob("tokenizer*.json"):
        path.unlink()
    (source / "sentencepiece.bpe.model").write_bytes(b"pieces")
    with pytest.raises(
        UserError, match=r"sentencepiece\.bpe\.model alone does not determine the ids .* add the tokenizer\.json"
    ):
        conversion.import_run(source, tmp_path / "other")


def test_transformers_reads_the_tokenizer_of_xlm_roberta(tmp_path, transformers):
    Tokenizer.load(unigram_folder(tmp_path / "tokenizer")).save(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs("the river x ri", "the")["input_ids"] == [0, 4, 10, 5, 3, 5, 6, 7, 2, 2, 4, 2]


@pytest.mark.parametrize(
    "theirs, at_minus_one, at_two",
    [
        *((name, -0.15865525, 1.9544997) for name in ("gelu", "gelu_python")),
        *(
            (name, -0.15880801, 1.9545977)
            for name in ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh")
        ),
        *((name, -0.26894142, 1.7615942) for name in ("silu", "swish")),
        ("relu", 0.0, 2.0),
        ("tanh", -0.76159416, 0.9640276),
    ],
)
def test_an_activation_has_several_names(theirs, at_minus_one, at_two):
    computed = FUNCTIONS[ACTIVATIONS[theirs]](jnp.float32([-1.0, 2.0]))
    np.testing.assert_allclose(computed, [at_minus_one, at_two], rtol=1e-6, atol=1e-7)


def test_every_name_of_an_activation_that_we_have_is_known(torch, transformers):
    activations = transformers.activations
    x = np.linspace(-12, 12, 200, dtype=np.float32)
    ours = {name: np.asarray(jax.vmap(function)(x)) for name, function in FUNCTIONS.items()}
    for name, kind in activations.ACT2CLS.items():
        if name == "xielu":  # has parameters, as prelu
            continue
        with torch.no_grad():
            theirs = activations.get_activation(name)(torch.from_numpy(x)).numpy()
        same = {other for other, values in ours.items() if np.abs(values - theirs).max() < 1e-5}
        assert same == ({ACTIVATIONS[name]} if name in ACTIVATIONS else set()), (name, kind)

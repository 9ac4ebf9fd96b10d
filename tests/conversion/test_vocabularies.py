"""Embedding tables and their tokenizers on the way from Hugging Face and back: added tokens, and rows beyond the tokens."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

import bert_jax
from bert_jax.conversion import convert as conversion
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from tests.running import ROOT

GOLDEN = ROOT / "tests" / "golden"
MASKED, MARKED = "a [MASK] [URL] covid", "the [E1] quiet ship [E1] and a river"


def folder_of(case: str, tokenizer: Tokenizer, num_rows: int, folder: Path) -> Path:
    """A folder of Hugging Face's with a golden model, whose table and MLM bias get `num_rows` rows, and a tokenizer."""
    shutil.copytree(GOLDEN / case, folder)
    (folder / "io.npz").unlink()
    rng = np.random.default_rng(0)
    tensors = load_file(folder / "model.safetensors")
    for name, array in tensors.items():
        if len(array) == 53:
            more = rng.normal(0, 0.3, (num_rows - 53, *array.shape[1:])).astype(np.float32)
            tensors[name] = np.concatenate([array, more])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": num_rows}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    return Tokenizer.train(["the old river and a quiet ship of a covid url"] * 3, 53)


def model_with_added_tokens(plain: Tokenizer, folder: Path) -> Path:
    """A masked language model with two tokens in added_tokens.json, and their rows at the end of the table."""
    folder_of("bert/masked_lm", plain, plain.vocab_size + 2, folder)
    (folder / "tokenizer.json").unlink()
    added = {"covid": plain.vocab_size, "[URL]": plain.vocab_size + 1}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    return folder


def classifier_with_markers(plain: Tokenizer, folder: Path) -> Path:
    """A classifier with an additional special token, [E1], in tokenizer.json."""
    folder_of("bert/sequence_classification", plain, plain.vocab_size + 1, folder)
    engine = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    engine.add_special_tokens(["[E1]"])
    engine.save(str(folder / "tokenizer.json"))
    return folder


def logits_of(folder: Path, head: str, text: str) -> np.ndarray:
    """The logits of a text in which masks are masks."""
    encoder = bert_jax.load(folder)
    tokenizer = encoder.tokenizer
    ids = [tokenizer.cls_id, *tokenizer.encode_with_masks(text), tokenizer.sep_id]
    return np.asarray(encoder(np.array([ids])).logits[head])[0]


def test_added_tokens_and_their_rows_come_back(plain, tmp_path):
    """Two tokens in addition to vocab.txt, and their rows at the end of the table: import, prediction, export."""
    size = plain.vocab_size
    source = model_with_added_tokens(plain, tmp_path / "source")
    conversion.import_run(source, tmp_path / "run")
    encoder = bert_jax.load(tmp_path / "run")
    assert encoder.tokenizer.tokens(encoder.tokenizer.encode(["a covid [URL]"])[0]) == ["a", "covid", "[URL]"]
    table = load_file(source / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert encoder.tokenizer.encode(["covid [URL]"])[0].tolist() == [size, size + 1]
    vectors = bert_jax.load(source).encode(["the covid [URL]", "a ship"])
    np.testing.assert_allclose(encoder.encode(["the covid [URL]", "a ship"]), vectors, atol=1e-6)

    (answer,) = bert_jax.Predictor.load(tmp_path / "run").predict([MASKED])
    logits = logits_of(tmp_path / "run", "mlm", MASKED)
    best = encoder.tokenizer.tokens(np.argsort(-logits[2])[:5])
    assert [entry["token"] for entry in answer["masks"][0]] == best

    conversion.export_run(tmp_path / "run", tmp_path / "exported")
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    np.testing.assert_array_equal(exported["bert.embeddings.word_embeddings.weight"], table)
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["vocab_size"] == size + 2
    again = Tokenizer.load(tmp_path / "exported")
    assert again.fingerprint == encoder.tokenizer.fingerprint and again.tokens([size, size + 1]) == ["covid", "[URL]"]


def test_a_classifier_with_special_tokens_of_its_own(plain, tmp_path):
    """Entity markers: an imported classifier reads them as single tokens, and so gives the probabilities of transformers."""
    source = classifier_with_markers(plain, tmp_path / "source")
    conversion.import_run(source, tmp_path / "run")
    (answer,) = bert_jax.Predictor.load(tmp_path / "run").predict([MARKED])
    (ids,) = bert_jax.load(tmp_path / "run").tokenizer.encode([MARKED])
    assert (ids == plain.vocab_size).sum() == 2
    logits = logits_of(source, "classification", MARKED)
    shares = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(list(answer["probabilities"].values()), shares, atol=1e-5)


@pytest.mark.parametrize(
    "make, head, text",
    [(model_with_added_tokens, "mlm", MASKED), (classifier_with_markers, "classification", MARKED)],
)
def test_transformers_reads_added_tokens_alike(make, head, text, plain, tmp_path, torch, transformers):
    """The folder as it was, and the one that we export."""
    source = make(plain, tmp_path / "source")
    conversion.import_run(source, tmp_path / "run")
    conversion.export_run(tmp_path / "run", tmp_path / "exported")
    for folder in (source, tmp_path / "exported"):
        name = json.loads((folder / "config.json").read_text())["architectures"][0]
        batch = transformers.AutoTokenizer.from_pretrained(str(folder))(text, return_tensors="pt")
        with torch.no_grad():
            theirs = getattr(transformers, name).from_pretrained(folder).eval()(**batch).logits[0].numpy()
        np.testing.assert_allclose(logits_of(folder, head, text), theirs, atol=1e-5)


@pytest.mark.parametrize("case", ["bert/masked_lm", "modernbert/masked_lm"])
def test_a_table_of_many_more_rows_than_tokens_is_kept(case, plain, tmp_path, caplog):
    source = folder_of(case, plain, 53 + 1000, tmp_path / "source")
    with caplog.at_level(logging.INFO):
        conversion.import_run(source, tmp_path / "run")
    (line,) = [record.message for record in caplog.records if "embedding has" in record.message]
    assert line == f"the embedding has 1053 rows for {plain.vocab_size} tokens; all are kept"
    conversion.export_run(tmp_path / "run", tmp_path / "exported")
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "exported"))
    kept = [name for name, array in after.items() if len(array) == 1053]
    assert len(kept) >= 2, "the table and the bias of the MLM head"
    for name in kept:
        np.testing.assert_array_equal(after[name], before[name])
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["vocab_size"] == 1053
    assert bert_jax.load(source).encode(["a ship"]).shape == (1, 12)
    (answer,) = bert_jax.Predictor.load(tmp_path / "run").predict([f"a {plain.tokens([plain.mask_id])[0]} ship"])
    assert all(entry["token"] for entry in answer["masks"][0]), "rows without a token are no answers"


def test_a_table_of_fewer_rows_than_tokens_is_refused(plain, tmp_path):
    source = folder_of("bert/masked_lm", plain, 53, tmp_path / "source")
    (source / "added_tokens.json").write_text(json.dumps({f"[{n}]": plain.vocab_size + n for n in range(60)}))
    with pytest.raises(UserError, match=r"the tokenizer has \d+ tokens, the embedding 53 rows"):
        conversion.import_run(source, tmp_path / "run")

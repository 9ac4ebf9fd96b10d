"""The whole way on text that is not embedded: encyclopedia articles and books, which are very long documents."""

import json
import re
import sys
from pathlib import Path

import pytest

from bert_jax.data.corpus.format import Corpus
from bert_jax.data.pretraining.documents import PackedDocuments
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from tests.running import ROOT, command, config_flag, losses, run

STEPS = 120
MODEL = {
    "vocab_size": 8192,
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 256,
    "max_positions": 128,
}


def tool(name: str, *flags: str) -> None:
    run([sys.executable, str(ROOT / "tools" / f"{name}.py"), *flags])


@pytest.fixture(scope="module")
def corpora(real_data, tmp_path_factory) -> Path:
    """Articles and books, with a tokenizer of the articles."""
    folder = tmp_path_factory.mktemp("corpora")
    source = f"--source=text:{real_data}/text"
    size = f"--vocab_size={MODEL['vocab_size']}"
    tool("train_tokenizer", f"{source}/wikipedia.txt.xz", size, f"--output={folder}/tokenizer")
    for name, number in (("wikipedia", 4012), ("books", 259)):
        flags = f"--tokenizer={folder}/tokenizer", f"--output={folder}/{name}", "--workers=2"
        tool("prepare_corpus", f"{source}/{name}.txt.xz", *flags)
        splits = [Corpus.open(folder / name, split) for split in ("train", "validation")]
        assert sum(split.num_documents for split in splits) == number
    return folder


@pytest.mark.real
@pytest.mark.timeout(900)
@pytest.mark.slow
@pytest.mark.parametrize("packing", ["pairs", "documents"])
def test_two_processes_train_on_real_text(packing, corpora, tmp_path, tiny_config):
    """A mixture of articles and books, as pairs of segments, and as packed documents."""
    workdir = tmp_path / "run"
    packed = {"objectives": ("mlm",), "data.packing": "documents"} if packing == "documents" else {}
    settings = {f"model.{field}": value for field, value in MODEL.items()} | {
        "data.corpus": str(corpora / "wikipedia"),
        "data.mixture": (f"0.3:{corpora}/books",),
        "data.eval_corpora": (f"{corpora}/books",),
        "data.sequence_length": 128,
        "train.num_steps": STEPS,
        "train.batch_size": 16,
        "train.eval_examples": 256,
        "train.eval_batch_size": 64,
        "optimizer.learning_rate": 2e-3,
        "optimizer.warmup_steps": 40,
        "checkpoint.every": 60,
    }
    config = config_flag(tiny_config(**settings | packed), tmp_path / "config")
    launcher = ["bash", str(ROOT / "launch" / "local.sh"), "--processes=2", "--devices-per-process=1", "--"]
    done = run([*launcher, config, f"--workdir={workdir}"])
    assert "70.0% of the run; books: " in done.stderr
    curve = losses(workdir)
    assert list(curve) == list(range(1, STEPS + 1))
    first, last = list(curve.values())[:10], list(curve.values())[-10:]
    assert sum(last) < sum(first) - 10 * 1.5, "it should have learned the frequencies of tokens at least"

    run(command("evaluate", f"--workdir={workdir}"))
    held_out = json.loads((workdir / "evaluation.json").read_text())[str(STEPS)]
    assert held_out["mlm/accuracy"] > 0.03, "a run that learned nothing is right once in thousands"
    for metric in ("mlm/loss", "books/mlm/loss"):
        assert held_out[metric] < 7.5, "of the unigram distribution it is about 6.5, of the uniform one 9.0"

    shown = run([sys.executable, str(ROOT / "tools" / "inspect_batch.py"), f"--workdir={workdir}", "--step=99"]).stdout
    assert "step 99, example 0 of 16" in shown
    assert bool(re.search(r"tokens in \d+ documents?, \d+ of padding", shown)) == (packing == "documents")


@pytest.mark.real
@pytest.mark.parametrize("length", [128, 512])
@pytest.mark.slow
def test_hardly_anything_is_left_over(length, corpora):
    """Less than 1% of the positions of packed rows are padding, on articles and on books."""
    for name in ("wikipedia", "books"):
        corpus = Corpus.open(corpora / name)
        source = PackedDocuments(corpus, Tokenizer.load(corpora / "tokenizer"), length, seed=0)
        plans = [source.plan(0, shard) for shard in range(len(corpus.shard_tokens))]
        filled = sum((plan.lengths + 2).sum() for plan in plans)
        assert filled / (source.size * length) > 0.99
        assert sum(plan.lengths.sum() for plan in plans) == corpus.num_tokens - corpus.num_documents

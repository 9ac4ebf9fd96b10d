"""The whole way on text that is not embedded: encyclopedia articles and books, which are very long documents."""

import json
import sys

import pytest

from bert_jax.data.corpus.format import Corpus
from tests.running import ROOT, command, config_flag, losses, run

STEPS = 200
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


@pytest.mark.real
@pytest.mark.timeout(900)
@pytest.mark.slow
def test_two_processes_train_on_real_text(real_data, tmp_path, tiny_config):
    tokenizer, corpus, workdir = (tmp_path / name for name in ("tokenizer", "corpus", "run"))
    articles, both = (f"--source=text:{real_data}/text/{name}.txt.xz" for name in ("wikipedia", "*"))
    tool("train_tokenizer", articles, f"--vocab_size={MODEL['vocab_size']}", f"--output={tokenizer}")
    tool("prepare_corpus", both, f"--tokenizer={tokenizer}", f"--output={corpus}", "--workers=2")
    splits = [Corpus.open(corpus, split) for split in ("train", "validation")]
    assert sum(split.num_documents for split in splits) == 4012 + 259, "articles and books"

    settings = {f"model.{field}": value for field, value in MODEL.items()} | {
        "data.corpus": str(corpus),
        "data.sequence_length": 128,
        "train.num_steps": STEPS,
        "train.batch_size": 16,
        "train.eval_examples": 256,
        "train.eval_batch_size": 64,
        "optimizer.learning_rate": 2e-3,
        "optimizer.warmup_steps": 40,
        "checkpoint.every": 100,
    }
    config = config_flag(tiny_config(**settings), tmp_path / "config")
    launcher = ["bash", str(ROOT / "launch" / "local.sh"), "--processes=2", "--devices-per-process=1", "--"]
    run([*launcher, config, f"--workdir={workdir}"])
    curve = losses(workdir)
    assert list(curve) == list(range(1, STEPS + 1))
    first, last = list(curve.values())[:10], list(curve.values())[-10:]
    assert sum(last) < sum(first) - 10 * 1.5, "it should have learned the frequencies of tokens at least"

    run(command("evaluate", f"--workdir={workdir}"))
    held_out = json.loads((workdir / "evaluation.json").read_text())[str(STEPS)]
    assert held_out["mlm/accuracy"] > 0.03, "a run that learned nothing is right once in thousands"
    assert held_out["mlm/loss"] < 7.5, "of the unigram distribution it is about 6.5, of the uniform one 9.0"

"""Evaluates a baseline for masked language modelling: token frequencies of the training set, on a run's held-out masks.

python tools/unigram_baseline.py --workdir=runs/x
"""

from collections.abc import Iterable

import numpy as np

from bert_jax.cli.command_flags import start_job
from bert_jax.cli.main import run_command
from bert_jax.data.corpus.format import Corpus
from bert_jax.errors import UserError
from bert_jax.files import write_json
from bert_jax.parallel.batches import HostBatch
from bert_jax.tasks import base as tasks
from tools.lib.run_files import UNIGRAM


def main() -> None:
    values, workdir = start_job()
    objectives = values.get("objectives", ())  # fine-tuning has none
    if "mlm" not in objectives:
        raise UserError(f"{workdir}: objectives are {', '.join(objectives) or 'none'}; the baseline is for mlm")
    task = tasks.create(values, workdir)
    size = task.config.train.eval_batch_size
    labels, weights = masked_labels(task.evaluator.batches(np.arange(size), size))
    corpus = Corpus.open(task.config.data.corpus, "train")
    counts = corpus.token_counts()[: task.tokenizer.vocab_size]
    counts[task.tokenizer.special_ids] = 0  # these are never masked
    result = baseline(counts, labels, weights)
    write_json(workdir / UNIGRAM, result)
    token = task.tokenizer.tokens([int(counts.argmax())])[0]
    print(f"held-out accuracy of always {token!r}: {result['accuracy']:.4f}; unigram loss: {result['loss']:.4f}")


def masked_labels(batches: Iterable[HostBatch]) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels and weights of all predictions, int32 and float32 [n]."""
    pairs = [(batch["mlm_labels"].ravel(), batch["mlm_weights"].ravel()) for batch in batches]
    labels, weights = zip(*pairs, strict=True)
    return np.concatenate(labels), np.concatenate(weights)


def baseline(counts: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Returns means over the predictions of labels [n], weighted with weights [n] as in training; counts [V] are of training.

    They are the accuracy of always predicting the most frequent token, and the loss, in nats, of the distribution
    (count + 1) / (N + V).
    """
    log_probability = np.log(counts + 1.0) - np.log(counts.sum() + len(counts))
    return {
        "accuracy": float(np.average(labels == counts.argmax(), weights=weights)),
        "loss": float(np.average(-log_probability[labels], weights=weights)),
    }


if __name__ == "__main__":
    run_command(main)

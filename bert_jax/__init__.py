"""bert_jax: pretrain BERT-family encoders on CPUs, GPUs and TPUs, exact on resume, and fine-tune them.

As a library: `bert_jax.load(folder)`, see library.py, and `bert_jax.Predictor.load(folder)`, see predictor.py.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Predictor", "load"]


def __getattr__(name: str) -> Any:
    # Only then, so that a command that imports one module does not import them all.
    if name == "load":
        from bert_jax.library import load

        return load
    if name == "Predictor":
        from bert_jax.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'bert_jax' has no attribute {name!r}")

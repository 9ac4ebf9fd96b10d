"""The pipeline of transformers that benchmark_rival_predict.py and benchmark_rival_serve.py measure.

It imports nothing of bert_jax, as benchmark_rival.py.
"""

from typing import Any

import torch
import transformers


def make_pipeline(options: dict[str, Any]) -> tuple[Any, torch.device]:
    """Returns a pipeline and its device. `options`: pipeline, model (a folder), dtype, threads, most_tokens of a text."""
    torch.set_num_threads(options["threads"])
    transformers.utils.logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(options["model"])
    tokenizer.model_max_length = options["most_tokens"]
    kind, dtype = options["pipeline"], getattr(torch, options["dtype"])
    return transformers.pipeline(kind, options["model"], tokenizer=tokenizer, device=device, dtype=dtype), device

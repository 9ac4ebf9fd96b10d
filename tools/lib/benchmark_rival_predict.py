"""A pipeline of transformers on a list of texts, one turn for each line on stdin: started by tools/benchmark.py predict.

It imports nothing of bert_jax, as benchmark_rival.py. Prints one line about itself, then the seconds for all texts.
"""

import json
import sys
import time
from typing import Any

import torch
import transformers

options = json.loads(sys.stdin.readline())
torch.set_num_threads(options["threads"])
transformers.utils.logging.set_verbosity_error()
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
tokenizer = transformers.AutoTokenizer.from_pretrained(options["model"])
tokenizer.model_max_length = options["most_tokens"]
pipeline: Any = transformers.pipeline(
    options["pipeline"], options["model"], tokenizer=tokenizer, device=device, dtype=getattr(torch, options["dtype"])
)
truncation = (
    {"truncation": True} if options["pipeline"] == "text-classification" else {}
)  # others truncate by themselves


def seconds(batch_size: int) -> float:
    start = time.perf_counter()
    list(pipeline(options["texts"], batch_size=batch_size, **truncation))
    return time.perf_counter() - start


for size in options["batch_sizes"]:
    seconds(size)
best = min(options["batch_sizes"], key=seconds)
versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
print(json.dumps({"about": f"{versions}, {options['dtype']}, batches of {best}, {device.type}"}), flush=True)
for _line in sys.stdin:
    print(seconds(best), flush=True)

"""A pipeline of transformers on a list of texts, one turn for each line on stdin: started by tools/benchmark.py predict.

It imports nothing of bert_jax, as benchmark_rival.py. Prints one line about itself, then the seconds for all texts.
"""

import json
import sys
import time

import torch
import transformers
from benchmark_rival_pipeline import make_pipeline

options = json.loads(sys.stdin.readline())
pipeline, device = make_pipeline(options)
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

"""The training step of transformers + PyTorch, one turn for each line on stdin: started by tools/benchmark.py.

It runs in a process, and perhaps in a Python, of its own, so it imports nothing of bert_jax. Reads options as one line of JSON,
prints one about itself, then the seconds of each turn. With `best`, on GPUs, the model is compiled and the optimizer fused;
otherwise they are as transformers has them. It pretrains, or fine-tunes a classifier (`fine_tunes`); with `lengths`
of examples on random batches of them, each padded to its longest example, otherwise on full rows.
"""

import contextlib
import itertools
import json
import sys
import time
from typing import Any

import torch
import transformers

options = json.loads(sys.stdin.readline())
torch.set_num_threads(options["threads"])
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
sizes = dict(options["model"])
config = transformers.AutoConfig.for_model(sizes.pop("model_type"), **sizes)
if options["best"] and hasattr(config, "sparse_prediction"):  # of ModernBERT: logits of predicted tokens only
    config.sparse_prediction = True
fine_tunes, compiles = options.get("fine_tunes", False), options["best"] and device.type == "cuda"
classes: Any = transformers.AutoModelForSequenceClassification if fine_tunes else transformers.AutoModelForMaskedLM
model = classes.from_config(config, dtype=torch.float32).to(device).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True if compiles else None)
autocast: contextlib.AbstractContextManager = contextlib.nullcontext()
if options["dtype"] != "float32":
    autocast = torch.autocast(device.type, dtype=getattr(torch, options["dtype"]))


def random_batch() -> dict[str, torch.Tensor]:
    lengths = torch.tensor(options.get("lengths", [options.get("sequence_length", 0)]))
    lengths = lengths[torch.randint(len(lengths), (options["batch_size"],))]
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    ids = torch.randint(1, config.vocab_size, tuple(mask.shape)) * mask
    if fine_tunes:
        labels = torch.randint(2, (len(lengths),))
    else:
        share = options["predictions"] / options["sequence_length"]
        predicted = (torch.rand(mask.shape) + (1 - mask)).argsort(1).argsort(1) < share * lengths[:, None]
        labels = torch.where(predicted, ids, -100)
    batch = {"input_ids": ids, "labels": labels}
    if "lengths" in options:  # without a mask, attention need not read one
        batch["attention_mask"] = mask
    return {name: value.to(device) for name, value in batch.items()}


batches = itertools.cycle([random_batch() for _ in range(32 if "lengths" in options else 1)])
# Compiled once for batches of all lengths.
step_model = torch.compile(model, dynamic=True if "lengths" in options else None) if compiles else model


def steps(count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        with autocast:
            loss = step_model(**next(batches)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # as bert_jax does, and transformers' own Trainer
        optimizer.step()
    loss.item()  # waits for the device


def turn() -> float:
    if device.type == "cuda":
        steps(1)  # the memory that was given back
    start = time.perf_counter()
    steps(options["steps_per_turn"])
    seconds = (time.perf_counter() - start) / options["steps_per_turn"]
    if device.type == "cuda":  # so that the other sides have it while they take their turns
        torch.cuda.empty_cache()
    return seconds


for _ in range(2):
    turn()
versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
compiled = ", compiled" if compiles else ""
attention = f"{model.config._attn_implementation} attention"
about = {"about": f"{versions}, {options['dtype']}, {attention}{compiled}, {device.type}"}
print(json.dumps(about), flush=True)
for _line in sys.stdin:
    print(turn(), flush=True)

"""The training step of transformers + PyTorch, one turn for each line on stdin: started by tools/benchmark.py.

It runs in a process, and perhaps in a Python, of its own, so it imports nothing of bert_jax. Reads options as one line of JSON,
prints one about itself, then the seconds of each turn. With the lengths of examples it fine-tunes a classifier on random
batches of them, each padded to its longest example; without it pretrains.
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
config = transformers.BertConfig(**options["model"])
fine_tunes = "lengths" in options
model: Any = (transformers.BertForSequenceClassification if fine_tunes else transformers.BertForMaskedLM)(config)
model = model.to(device).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
autocast: contextlib.AbstractContextManager = contextlib.nullcontext()
if options["dtype"] != "float32":
    autocast = torch.autocast(device.type, dtype=getattr(torch, options["dtype"]))


def random_batch() -> dict[str, torch.Tensor]:
    if fine_tunes:
        lengths = torch.tensor(options["lengths"])
        lengths = lengths[torch.randperm(len(lengths))[: options["batch_size"]]]
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        ids = torch.randint(1, config.vocab_size, tuple(mask.shape)) * mask
        labels = torch.randint(2, (len(lengths),))
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    else:
        shape = (options["batch_size"], options["sequence_length"])
        ids = torch.randint(config.vocab_size, shape)
        chosen = torch.rand(shape).argsort(1) < options["predictions"]  # as many in each row
        labels = torch.where(chosen, ids, -100)
        batch = {"input_ids": ids, "attention_mask": torch.ones(shape, dtype=torch.int64), "labels": labels}
    return {name: value.to(device) for name, value in batch.items()}


batches = itertools.cycle([random_batch() for _ in range(32 if fine_tunes else 1)])


def turn() -> float:
    start = time.perf_counter()
    for _ in range(options["steps_per_turn"]):
        optimizer.zero_grad()
        with autocast:
            loss = model(**next(batches)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # as bert_jax does, and transformers' own Trainer
        optimizer.step()
    loss.item()  # waits for the device
    return (time.perf_counter() - start) / options["steps_per_turn"]


for _ in range(2):
    turn()
versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
about = {"about": f"{versions}, {options['dtype']}, {config._attn_implementation} attention, {device.type}"}
print(json.dumps(about), flush=True)
for _line in sys.stdin:
    print(turn(), flush=True)

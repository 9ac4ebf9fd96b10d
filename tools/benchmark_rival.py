"""The training step of transformers + PyTorch, one step for each line on stdin: started by tools/benchmark.py.

It runs in a process, and perhaps in a Python, of its own, so it imports nothing of bert_jax. Prints one line of JSON about
itself, then the seconds of each turn.
"""

import contextlib
import json
import sys
import time
from typing import Any

import torch
import transformers

options = json.loads(sys.argv[1])
torch.set_num_threads(options["threads"])
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
config = transformers.BertConfig(**options["model"])
model: Any = transformers.BertForMaskedLM(config)
model = model.to(device).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
autocast: contextlib.AbstractContextManager = contextlib.nullcontext()
if options["dtype"] != "float32":
    autocast = torch.autocast(device.type, dtype=getattr(torch, options["dtype"]))

shape = (options["batch_size"], options["sequence_length"])
batch = {"input_ids": torch.randint(config.vocab_size, shape), "attention_mask": torch.ones(shape, dtype=torch.int64)}
chosen = torch.rand(shape).argsort(1) < options["predictions"]  # as many in each row
batch["labels"] = torch.where(chosen, batch["input_ids"], -100)
batch = {name: value.to(device) for name, value in batch.items()}


def turn() -> float:
    start = time.perf_counter()
    for _ in range(options["steps_per_turn"]):
        optimizer.zero_grad()
        with autocast:
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # as ours does, and transformers' own Trainer
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

"""Batches of transformers' numpy collator, one turn for each line on stdin: started by tools/benchmark.py input.

It imports nothing of bert_jax, as benchmark_rival.py. Prints one line about itself, then the seconds of a core for a batch.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import transformers

options = json.loads(sys.stdin.readline())
tokenizer = transformers.BertTokenizerFast.from_pretrained(options["tokenizer"])
collator: Any = transformers.DataCollatorForLanguageModeling(
    tokenizer, mlm_probability=0.15, whole_word_mask=options["whole_word"], return_tensors="np"
)
windows = np.load(options["windows"])


def example(ids: np.ndarray, is_special: np.ndarray, is_start: np.ndarray) -> dict[str, Any]:
    """Returns an example as datasets yields it: lists, with all that a collator would have to compute otherwise."""
    features = {"input_ids": ids.tolist(), "special_tokens_mask": is_special.astype(int).tolist()}
    if options["whole_word"]:  # characters of each token in its text: a gap before each word
        starts = np.cumsum(np.where(is_start, 2, 1))
        features["offset_mapping"] = np.where(is_special[:, None], 0, np.stack([starts, starts + 1], axis=1)).tolist()
    return features


examples = [example(*row) for row in zip(windows["ids"], windows["is_special"], windows["is_start"], strict=True)]
size = options["batch_size"]
batches = [examples[start : start + size] for start in range(0, len(examples), size)]


def turn() -> float:
    start = time.process_time()
    for number in range(options["batches"]):
        collator([dict(example) for example in batches[number % len(batches)]])
    return (time.process_time() - start) / options["batches"]


turn()
print(json.dumps({"about": f"transformers {transformers.__version__}, {type(collator).__name__}"}), flush=True)
for _line in sys.stdin:
    print(turn(), flush=True)

"""A pipeline of transformers behind FastAPI: started by tools/benchmark.py serve with the model, the port and more as JSON.

It imports nothing of bert_jax, as benchmark_rival.py. One request at a time has the pipeline, as several would only share the
cores.
"""

import json
import sys
import threading
from typing import Any

import torch
import transformers
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

options = json.loads(sys.argv[1])
torch.set_num_threads(options["threads"])
transformers.utils.logging.set_verbosity_error()
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
tokenizer = transformers.AutoTokenizer.from_pretrained(options["model"])
tokenizer.model_max_length = options["most_tokens"]
pipeline: Any = transformers.pipeline(
    options["pipeline"], options["model"], tokenizer=tokenizer, device=device, dtype=getattr(torch, options["dtype"])
)
arguments = {"truncation": True, "top_k": None} if options["pipeline"] == "text-classification" else {}
app, lock = FastAPI(), threading.Lock()


class Body(BaseModel):
    inputs: str


@app.get("/ready")
def ready() -> bool:
    return True


@app.post("/predict")
def predict(body: Body) -> Any:
    with lock:
        answer = pipeline(body.inputs, **arguments)
    if options["pipeline"] == "token-classification":
        return [row | {"score": float(row["score"])} for row in answer]
    return answer


for text in options["texts"]:
    pipeline(text, **arguments)
uvicorn.run(app, port=options["port"], access_log=False, log_level="warning")

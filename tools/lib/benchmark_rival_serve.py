"""A pipeline of transformers behind FastAPI: started by tools/benchmark.py serve with the model, the port and more as JSON.

It imports nothing of bert_jax, as benchmark_rival.py. One request at a time has the pipeline, as several would only share the
cores.
"""

import json
import sys
import threading
from typing import Any

import uvicorn
from benchmark_rival_pipeline import make_pipeline
from fastapi import FastAPI
from pydantic import BaseModel

options = json.loads(sys.argv[1])
pipeline, _ = make_pipeline(options)
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

"""The suite `serve`: requests of several clients at once, against a pipeline of transformers behind the same framework."""

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.conversion.convert import export_run
from bert_jax.errors import UserError
from bert_jax.predictor import Predictor
from tools.lib.benchmark_material import Material
from tools.lib.benchmark_rows import Row, failed_row
from tools.lib.benchmark_serving import PIPELINES, mixed_texts, run_on_texts
from tools.lib.benchmark_settings import RIVAL, Settings
from tools.lib.benchmark_sides import rival_environment
from tools.lib.load import Load, measure_load
from tools.lib.server_process import free_port, server_process

CLIENTS, QUICK_CLIENTS = (1, 8, 64), (1, 4)
SECONDS, QUICK_SECONDS = 6.0, 0.3  # of a turn
TEXTS = 256
OWN = "bert_jax"
Address = tuple[int, str]  # port and path


def serve(settings: Settings) -> tuple[dict[str, Any], Iterator[Row]]:
    """Measures requests/s and latencies of a server with a run on single texts, at 1, 8 and 64 clients."""
    material = Material(settings)
    folder, predictor, about = run_on_texts(settings, material)
    texts = mixed_texts(material.texts(), TEXTS)
    lengths = [len(ids) for ids in predictor.task.tokenizer.encode(texts)]
    about |= {"texts": len(texts), "median_tokens": int(np.median(lengths)), "turns": settings.turns}
    return about, _rows(settings, Path(folder), predictor, texts)


def _rows(settings: Settings, folder: Path, predictor: Predictor, texts: list[str]) -> Iterator[Row]:
    seconds, numbers = (QUICK_SECONDS, QUICK_CLIENTS) if settings.quick else (SECONDS, CLIENTS)
    bodies = [{"inputs": text} for text in texts]
    loads: dict[tuple[str, int], list[Load]] = {}
    with contextlib.ExitStack() as stack:
        sides = {OWN: _start_own(stack, folder)}
        if settings.against:
            try:
                sides[RIVAL] = _start_rival(stack, settings, folder, predictor, texts)
            except UserError as error:
                yield failed_row(RIVAL, error)
        for port, path in sides.values():
            measure_load(port, path, bodies, max(numbers), seconds)  # warm
        for _ in range(settings.turns):
            for clients in numbers:
                for name, (port, path) in sides.items():
                    loads.setdefault((name, clients), []).append(measure_load(port, path, bodies, clients, seconds))
    for clients in numbers:
        title = f"{clients} client{'s' if clients > 1 else ''}"
        for name in sides:
            yield _row(f"{title}: {name}", loads[name, clients])
        if RIVAL in sides:
            pairs = zip(loads[OWN, clients], loads[RIVAL, clients], strict=True)
            yield Row(f"{title}: ratio to {RIVAL}", "x", [own.rate / other.rate for own, other in pairs])


def _row(name: str, loads: list[Load]) -> Row:
    failures = sum(load.failures for load in loads)
    half, most = (float(np.median([load.percentile(share) for load in loads])) for share in (50, 99))
    note = f"p50 {half:,.1f} ms, p99 {most:,.1f} ms; {failures} of {sum(len(load.statuses) for load in loads):,} requests lost"
    return Row(name, "requests/s", [load.rate for load in loads], note=note, failed=failures > 0)


def _start_own(stack: contextlib.ExitStack, folder: Path) -> Address:
    port = free_port()
    command = [sys.executable, "-m", "bert_jax.serve", f"--workdir={folder.absolute()}", f"--port={port}"]
    stack.enter_context(server_process(command, port, {}))
    return port, f"/v1/{folder.resolve().name}/predict"


def _start_rival(
    stack: contextlib.ExitStack, settings: Settings, folder: Path, predictor: Predictor, texts: list[str]
) -> Address:
    exported = stack.enter_context(tempfile.TemporaryDirectory())
    export_run(folder, Path(exported) / "model")
    port, config = free_port(), predictor.task.config
    options: dict[str, Any] = {"model": f"{exported}/model", "pipeline": PIPELINES[config.task], "port": port}
    options |= {"most_tokens": predictor.task.row_length, "texts": texts[:8], "threads": settings.threads}
    options["dtype"] = settings.rival_dtype or config.model.dtype
    script = str(Path(__file__).parent / "benchmark_rival_serve.py")
    command = [settings.rival_python, script, json.dumps(options)]
    stack.enter_context(server_process(command, port, rival_environment(settings.rival_environment)))
    return port, "/predict"

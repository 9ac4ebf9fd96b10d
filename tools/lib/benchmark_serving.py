"""The suites `predict` and `startup`: a trained run in use."""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax.conversion.convert import export_run
from bert_jax.errors import UserError
from bert_jax.predictor import Predictor
from bert_jax.train.flops import flops_per_token, measured_matmul_flops
from tools.lib.benchmark_material import Material
from tools.lib.benchmark_rows import Row, failed_row, rate, ratio_row, ratios
from tools.lib.benchmark_settings import RIVAL, Settings
from tools.lib.benchmark_sides import seconds_of_process, take_turns

PIPELINES = {"text": "text-classification", "tokens": "token-classification"}  # tasks of a single text
TEXTS, QUICK_TEXTS = 1024, 16
RIVAL_BATCH_SIZES = (1, 8, 32, 128)  # the fastest of them is compared
SECONDS = 60.0  # of the turns
IMPORTS = "imports of jax, flax and orbax"  # what every command needs


def predict(settings: Settings) -> tuple[dict[str, Any], Iterator[Row]]:
    """Measures examples/s of a predictor on texts of mixed lengths, against transformers' pipeline with the same model."""
    material = Material(settings)
    folder, predictor, about = run_on_texts(settings, material)
    texts = mixed_texts(material.texts(), QUICK_TEXTS if settings.quick else TEXTS)
    about |= {"texts": len(texts)}
    return about | {"turns": settings.turns}, _predict_rows(settings, folder, predictor, texts)


def run_on_texts(settings: Settings, material: Material) -> tuple[str, Predictor, dict[str, Any]]:
    """Returns the folder of a run on single texts, its predictor, and what to print about it.

    Raises:
      UserError: the run in --workdir is for something else.
    """
    folder = settings.workdir or material.run()
    predictor = Predictor.load(folder)
    task, model = predictor.task.config.task, predictor.task.config.model
    if task not in PIPELINES or len(predictor.input_fields) != 1:
        raise UserError(f"--workdir={folder}: has the task {task}; name a run on single texts: {', '.join(PIPELINES)}")
    about = {"task": task, "layers": model.num_layers, "width": model.hidden_size, "dtype": model.dtype}
    return folder, predictor, about | {"most_tokens": predictor.task.row_length}


def mixed_texts(texts: list[str], count: int) -> list[str]:
    """Returns `count` texts, or all if there are fewer, from all parts of the source."""
    return list(itertools.islice(texts[:: max(1, len(texts) // count)], count))


def _predict_rows(settings: Settings, folder: str, predictor: Predictor, texts: list[str]) -> Iterator[Row]:
    def own() -> float:
        start = time.perf_counter()
        predictor.predict(texts)
        return time.perf_counter() - start

    own()  # compiles
    model, device = predictor.task.config.model, jax.local_devices()[0]
    sides = {"bert_jax": own, "product": lambda: measured_matmul_flops(model.dtype, device, repeats=3)}
    notes = {"bert_jax": "several texts in a row"}
    failed = list[Row]()
    if settings.against:
        with tempfile.TemporaryDirectory() as exported:
            export_run(Path(folder), Path(exported) / "model")
            config = predictor.task.config
            options: dict[str, Any] = {"model": f"{exported}/model", "pipeline": PIPELINES[config.task], "texts": texts}
            options |= {"most_tokens": config.data.sequence_length, "batch_sizes": RIVAL_BATCH_SIZES}
            options["dtype"] = settings.rival_dtype or config.model.dtype
            try:
                notes[RIVAL], sides[RIVAL] = settings.child("benchmark_rival_predict.py", options)
            except UserError as error:
                failed.append(failed_row(RIVAL, error))
    measured = take_turns(sides, settings.turns, SECONDS)
    product = float(np.median(measured.pop("product")))
    lengths = [len(ids) for ids in predictor.task.tokenizer.encode(texts)]
    # The forward pass is a third of training.
    operations = sum(lengths) * flops_per_token(model, round(float(np.mean(lengths))), 0.0) / 3
    share = operations / float(np.median(measured["bert_jax"])) / product
    for name, seconds in measured.items():
        row = rate(name, "examples/s", len(texts), seconds, note=notes[name])
        yield dataclasses.replace(row, share=share) if name == "bert_jax" else row
    if RIVAL in measured:
        yield ratio_row(RIVAL, measured[RIVAL], measured["bert_jax"])
    yield from failed


def startup(settings: Settings) -> tuple[dict[str, Any], Iterator[Row]]:
    """Measures how long commands take until they end, in real processes, against the imports that they all need."""
    return {"turns": settings.turns}, _startup_rows(settings)


def _startup_rows(settings: Settings) -> Iterator[Row]:
    commands = {IMPORTS: ["-c", "import jax, flax, orbax.checkpoint"]}
    if not settings.quick:
        commands["import bert_jax"] = ["-c", "import bert_jax; bert_jax.load"]
        folder = settings.workdir or Material(settings).run()
        commands |= {f"{name} --help": ["-m", f"bert_jax.{name}", "--help"] for name in ("pretrain", "predict")}
        predict = ["-m", "bert_jax.predict", f"--workdir={folder}"]
        commands["predict --text"] = [*predict, "--text=a text of a few words"]
    sides = {name: partial(seconds_of_process, command) for name, command in commands.items()}
    if not settings.quick:
        take_turns(sides, 1)  # from now on files are in memory and programs in the compilation cache
    measured = take_turns(sides, settings.turns, SECONDS)
    for name, seconds in measured.items():
        compared: Any = {} if name == IMPORTS else {"base": "the imports", "ratios": ratios(measured[IMPORTS], seconds)}
        yield Row(name, "s", seconds, **compared)

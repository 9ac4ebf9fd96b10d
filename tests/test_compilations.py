"""Overheads of a run: every program is compiled once, and nothing is transferred to the devices implicitly."""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import pytest

from bert_jax import Predictor, run
from bert_jax.config import to_config_dict
from bert_jax.run import run_training
from bert_jax.tasks import text


@contextmanager
def compilations() -> Iterator[Counter[str]]:
    """Counts programs by the name of their function, as jax logs them when it compiles one."""
    found: Counter[str] = Counter()

    class Counts(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if match := re.match(r"Compiling (?:jit\()?(\w+)\)? with global shapes", record.getMessage()):
                found[match[1]] += 1

    handler, logger = Counts(), logging.getLogger("jax")
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield found
    finally:
        logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    """As in a new process: no program that other tests compiled is there. The machine is not measured."""
    jax.clear_caches()
    monkeypatch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)


@pytest.fixture
def only_explicit_transfers(monkeypatch):
    """In the training loop, including evaluations and checkpoints, jax disallows implicit copies of numpy arrays to devices."""
    train = run.train

    def guarded(*arguments):
        with jax.transfer_guard("disallow"):
            return train(*arguments)

    monkeypatch.setattr(run, "train", guarded)


ONCE = {"init_state": 1, "train_step": 1, "eval_step": 1, "all_finite": 1}
SETTINGS = {"train.num_steps": 9, "train.eval_every": 3, "checkpoint.every": 2}


def of_training(found: Counter[str]) -> dict[str, int]:
    return {name: found[name] for name in ONCE}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.mark.usefixtures("only_explicit_transfers")
def test_pretraining_compiles_each_program_once(tiny_config, folders):
    """With several evaluations and checkpoints, accumulation and an average."""
    more = {
        "train.ema_decay": 0.9,
        "train.accumulation_steps": 2,
        "parallel.data": 2,
        "parallel.fsdp": 2,
        "parallel.tensor": 2,
    }
    with compilations() as found:
        run_training(tiny_config(**SETTINGS, **more), folders / "pretrained")
    assert of_training(found) == ONCE


@pytest.mark.usefixtures("only_explicit_transfers")
def test_a_change_of_phase_compiles_nothing(tiny_config, tmp_path, monkeypatch):
    """Every program is compiled before the first step; mask and learning rates need none, a rotary base one of each kind."""
    phases = (
        {"until_step": 3, "sequence_length": 16},
        {"until_step": 6, "mlm_probability": 0.4, "mlm_probability_end": 0.2, "rope_theta": 100.0},
        {"until_step": 8, "mlm_probability": 0.4},
        {"until_step": 9, "mlm_probability": 0.4, "schedule": "sqrt", "learning_rate": 1e-4},
    )
    values = tiny_config(**SETTINGS, **{"model.positions": "rope"})
    with values.unlocked():
        values.phases = phases
    before, train = Counter[str](), run.train

    def counting(*arguments):
        before.update(found)
        return train(*arguments)

    monkeypatch.setattr(run, "train", counting)
    with compilations() as found:
        run_training(values, tmp_path / "run")
    programs = ("train_step", "eval_step")
    assert {name: before[name] for name in programs} == {name: found[name] for name in programs}
    assert of_training(found) == ONCE | {"train_step": 3, "eval_step": 2}, "one for each base, length, and masks"


@pytest.mark.usefixtures("only_explicit_transfers")
def test_fine_tuning_compiles_each_program_once(tiny_bert, folders):
    """Its texts are of many lengths."""
    words = ["old", "quiet", "river", "ship", "the", "a"]
    rows = [{"text": " ".join(words[: 1 + n % 6]), "label": f"label {n % 2}"} for n in range(50)]
    (folders / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = to_config_dict(text.Config())
    files = {f"data.{split}": str(folders / "rows.jsonl") for split in ("train", "validation")}
    more = {
        "init_from": str(tiny_bert),
        "train.batch_size": 8,
        "data.sequence_length": 16,
        "train.compilation_cache": False,
    }
    values.update_from_flattened_dict(SETTINGS | files | more)
    with compilations() as found:
        run_training(values, folders / "finetuned")
    assert of_training(found) == ONCE


def test_filling_masks_compiles_few_programs(folders):
    """One for few masks in a row, one for more, and none for what was seen before."""
    predictor = Predictor.load(folders / "pretrained")
    with compilations() as found:
        for number in range(1, 9):
            predictor.predict([f"the [MASK] {'old ' * n}river {'[MASK] ' * (n % 2)}" for n in range(number)])
        predictor.predict(["[MASK] " * 9])
    assert found["_filled"] == 2, "few masks in a row, or more"
    with compilations() as found:
        predictor.predict(["an [MASK] ship", "a [MASK] and a [MASK]", "the [MASK]"])
    assert not found


def test_labelling_texts_compiles_two_programs(folders):
    """One for few texts, one for many, whatever their lengths and numbers."""
    predictor = Predictor.load(folders / "finetuned")
    with compilations() as found:
        for number in (1, 3, 50, 70, 200):
            predictor.predict(["the old river " * (n % 4 + 1) for n in range(number)])
    assert found["eval_step"] == 2

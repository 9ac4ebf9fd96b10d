"""What inspect_batch shows is what the batch holds; and the unigram baseline, which looks at the same labels."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from bert_jax import run
from bert_jax.data.corpus.format import Corpus
from bert_jax.parallel.mesh import make_mesh
from bert_jax.run_folder.folder import get_config
from bert_jax.tasks import base as tasks
from tools.lib.batch_examples import bands, column_width, positions, report, span_lengths
from tools.lib.predictions import predictions
from tools.unigram_baseline import baseline, masked_labels


@pytest.fixture(scope="module")
def task(tiny_config):
    return tasks.create(tiny_config(), Path("no-run"))


def test_positions_are_those_of_the_batch(task):
    batch = task.training.batch(task.training.phases(1)[0], np.arange(8), 3)
    kinds = set()
    for row in range(8):
        example = {name: values[row] for name, values in batch.items()}
        seen = positions(task.tokenizer, example)
        assert len(seen) == example["attention_mask"].sum()
        assert [p.token for p in seen] == task.tokenizer.tokens(example["input_ids"][: len(seen)])
        assert [p.segment for p in seen] == example["token_type_ids"][: len(seen)].tolist()
        predicted = {n: p.label for n, p in enumerate(seen) if p.label}
        number = int(example["mlm_weights"].sum())
        assert list(predicted) == example["mlm_positions"][:number].tolist()
        assert list(predicted.values()) == task.tokenizer.tokens(example["mlm_labels"][:number])
        for place in predicted:
            found, label = seen[place].token, seen[place].label
            assert seen[place].kind == ("mask" if found == "[MASK]" else "kept" if found == label else "random")
        kinds |= {p.kind for p in seen}
    assert kinds == {"special", "first", "second", "mask", "random", "kept"}


def test_bands_hold_every_position_once_and_fit(task):
    batch = task.training.batch(task.training.phases(1)[0], np.arange(8), 0)
    seen = positions(task.tokenizer, {name: values[0] for name, values in batch.items()})
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    for band in bands(seen, 60):
        console.print(band)
    lines = console.export_text().splitlines()
    shown = [int(number) for line in lines if line.startswith("position") for number in line.split()[1:]]
    assert shown == list(range(len(seen)))
    assert max(map(len, map(str.rstrip, lines))) <= 60
    assert column_width(seen[0], 0) == len("[CLS]") + 1


def test_both_kinds_of_masking_are_shown(task, capsys):
    console = Console(width=100)
    for part in report(task, step=0, num_rows=1):
        console.print(part)
    text = capsys.readouterr().out
    assert "nsp_labels = " in text and "to predict" in text
    dynamic, static = text[text.index("dynamic") :].split("static")[:2]
    assert "new" in dynamic and "the same" not in dynamic and "the same" in static


def test_packed_documents_have_letters(tiny_config, capsys):
    task = tasks.create(tiny_config(objectives=("mlm",), **{"data.packing": "documents"}), Path("no-run"))
    batch = task.training.batch(task.training.phases(1)[0], np.arange(8), 0)
    row = int(batch["segment_ids"].max(axis=1).argmax())
    example = {name: values[row] for name, values in batch.items()}
    number = int(example["segment_ids"].max())
    assert number > 1 and positions(task.tokenizer, example)[-1].segment == number - 1
    console = Console(width=200)
    for part in report(task, step=0, num_rows=8):
        console.print(part)
    text = capsys.readouterr().out
    assert re.search(rf"\d+ tokens in {number} documents, \d+ of padding", text) and re.search(
        r"segment.* A .* B ", text
    )


def test_spans_and_their_strategy_are_named(tiny_config, capsys):
    options = {"masking": "span", "mlm_probability": 0.4, "mlm_probability_end": 0.2, "count": "stochastic"}
    task = tasks.create(
        tiny_config(**{f"options.mlm.{name}": value for name, value in options.items()}), Path("no-run")
    )
    batch = task.training.batch(task.training.phases(1)[0], np.arange(8), 0)
    lengths = list[int]()
    for row in range(8):
        example = {name: values[row] for name, values in batch.items()}
        shown = span_lengths(task.tokenizer, example)
        number = int(example["mlm_weights"].sum())
        places, labels = example["mlm_positions"][:number].tolist(), example["mlm_labels"][:number]
        expected = list[int]()
        for place, label in zip(places, labels, strict=True):
            if place - 1 not in places:
                expected.append(1)
            else:
                expected[-1] += int(task.tokenizer.word_starts[label])
        assert shown == expected
        lengths += shown
    assert np.mean(lengths) > 1.5
    console = Console(width=200)
    for part in report(task, step=0, num_rows=1):
        console.print(part)
    text = capsys.readouterr().out
    assert "masking: span, spans of 1 to 10 whole words, geometric lengths with p = 0.2, 3.80 on average" in text
    assert "count: stochastic, 40.0% of the tokens (40.0% to 20.0% in the phase)" in text
    assert re.search(r"to predict: .* in \d+ spans of \d\.\d words", text)


def test_the_unigram_baseline(task):
    size = task.config.train.eval_batch_size
    labels, weights = masked_labels(task.evaluator.batches(np.arange(size), size))
    counts = Corpus.open(task.config.data.corpus).token_counts()
    counts[task.tokenizer.special_ids] = 0
    found = baseline(counts, labels, weights)

    # The same by hand, label by label.
    kept = [int(label) for label, weight in zip(labels, weights, strict=True) if weight]
    total = sum(int(count) + 1 for count in counts)
    loss = -sum(np.log((int(counts[label]) + 1) / total) for label in kept) / len(kept)
    assert found["loss"] == pytest.approx(loss, rel=1e-12)
    assert found["accuracy"] == pytest.approx(kept.count(int(counts.argmax())) / len(kept))
    assert 0 < len(kept) < len(labels) or weights.all()


@pytest.mark.parametrize("objective", ["rtd", "distillation"])
@pytest.mark.slow
def test_predictions_of_a_run_are_shown(objective, tiny_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
    monkeypatch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)
    settings = {"train.num_steps": 1, "model.num_layers": 1, "options.rtd.generator_size": 0.5}
    if objective == "distillation":
        run.run_training(tiny_config(**settings, objectives=("mlm",)), tmp_path / "teacher")
        settings["options.distillation.folder"] = str(tmp_path / "teacher")
    run.run_training(tiny_config(**settings, objectives=(objective,)), tmp_path / "run")
    console, task = Console(width=140), tasks.create(tiny_config(**settings, objectives=(objective,)), tmp_path / "run")
    for part in predictions(get_config(str(tmp_path / "run")), tmp_path / "run", step=0, num_rows=1):
        console.print(part)
    text = capsys.readouterr().out
    batch = task.training.batch(task.training.phases(1)[0], np.arange(1), 0)
    number = int(batch["mlm_weights"][0].sum())
    for position, label in zip(batch["mlm_positions"][0][:number], batch["mlm_labels"][0], strict=False):
        assert re.search(rf"\b{position} +│ {re.escape(task.tokenizer.tokens([label])[0])} ", text)
    names = {"rtd": ("generator's sample", "P(replaced)"), "distillation": ("model", "teacher")}[objective]
    assert all(name in text for name in names)
    assert not list(predictions(None, tmp_path / "nothing", step=0, num_rows=1))

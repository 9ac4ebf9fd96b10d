"""The example of support requests: its sentences, and its command from labels to a package, with a tiny encoder."""

import itertools
import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from bert_jax.errors import UserError
from examples.intents import run as intents
from tests.running import ROOT, environment

FOLDER = ROOT / "examples" / "intents"
SIZES = {"train": 20, "dev": 4, "test": 6}  # of each intent
MOST_ALIKE = 0.4  # Jaccard index of the trigrams of two sentences of different files


def sentences(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


def trigrams(text: str) -> set[str]:
    letters = re.sub(r"\W+", " ", text.lower())
    return {letters[place : place + 3] for place in range(len(letters) - 2)} or {letters}


def test_every_intent_has_as_many_sentences():
    counts = {name: Counter(row["label"] for row in sentences(name)) for name in SIZES}
    assert len(counts["train"]) == 12
    for name, size in SIZES.items():
        assert counts[name] == dict.fromkeys(counts["train"], size)
        assert all(row.keys() == {"text", "label"} and len(row["text"]) <= 100 for row in sentences(name))


def test_no_sentence_is_nearly_one_of_another_file():
    rows = [(name, row["text"], trigrams(row["text"])) for name in SIZES for row in sentences(name)]
    assert len({re.sub(r"\W", "", text.lower()) for _, text, _ in rows}) == len(rows), "the same sentence twice"
    for (name, text, of_one), (other, other_text, of_other) in itertools.combinations(rows, 2):
        if name != other:
            share = len(of_one & of_other) / len(of_one | of_other)
            assert share < MOST_ALIKE, f"{text!r} in {name} and {other_text!r} in {other}"


def test_there_must_be_an_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(intents, "ROOT", tmp_path)
    with pytest.raises(UserError, match=r"run launch/quickstart\.sh first, or set --init_from"):
        intents.encoder_for("")
    with pytest.raises(UserError, match=r"holds no config\.json"):
        intents.encoder_for(str(tmp_path))
    (tmp_path / intents.QUICKSTART).mkdir(parents=True)
    (tmp_path / intents.QUICKSTART / "config.json").write_text("{}")
    assert intents.encoder_for("") == tmp_path / intents.QUICKSTART


def test_accuracies_of_seeds_are_averaged(tmp_path):
    for over, accuracy in (("words", 0.25), ("features", 0.5)):
        (tmp_path / over).mkdir()
        (tmp_path / over / "scores.json").write_text(json.dumps({"accuracy": accuracy}))
    runs = [tmp_path / f"seed_{seed}" for seed in (0, 1)]
    for run, accuracy in zip(runs, (0.75, 0.875), strict=True):
        folder = run / "evaluations" / intents.TEST
        folder.mkdir(parents=True)
        (folder / "evaluation.json").write_text(json.dumps({"45": {"accuracy": 0.0}, "90": {"accuracy": accuracy}}))
    comparison = intents.comparison(tmp_path, runs)
    assert [value for _, value in comparison.rows] == [0.25, 0.5, 0.8125] and comparison.metric == "accuracy"
    spread = json.loads((tmp_path / "scores.json").read_text())["test accuracy"]
    assert spread["seeds"] == [0.75, 0.875] and spread["std"] == pytest.approx(0.125 / 2**0.5)


@pytest.mark.slow
def test_the_whole_command(tiny_bert, tmp_path):
    """Linear models, two seeds, tests, the report and the package; the commands that it prints work."""
    changes = [f"--finetune={change}" for change in ("data.sequence_length=16", "train.num_steps=2")]
    changes += ["--finetune=train.compilation_cache=False"]
    command = [sys.executable, "examples/intents/run.py", f"--init_from={tiny_bert}", "--seeds=2"]
    command += [f"--workdir={tmp_path}/intents", *changes]
    done = subprocess.run(command, env=environment(1), cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    (best,) = re.findall(r"^python -m bert_jax.serve --workdir=(.*)$", done.stdout, re.MULTILINE)
    page = (tmp_path / "intents" / best / "report.html").read_text()
    assert "What does this customer want?" in page and "intents_test" in page and page.count("Confusion matrix") == 2
    assert (tmp_path / "intents" / best / "temperature.json").exists()
    assert "Apache-2.0" in (tmp_path / "intents" / "package" / "README.md").read_text()
    measured = json.loads((tmp_path / "intents" / "package" / "metrics.json").read_text())
    assert len(measured["all_seeds"]["test accuracy"]["seeds"]) == 2 and "intents_test" in measured["evaluations"]
    (shown,) = re.findall(r"^python (-m bert_jax.predict .*) --text='(.*)'$", done.stdout, re.MULTILINE)
    predict = [sys.executable, *shown[0].split(), f"--text={shown[1]}"]
    answer = subprocess.run(predict, env=environment(1), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert json.loads(answer)["label"] in json.loads((tmp_path / "intents" / best / "labels.json").read_text())

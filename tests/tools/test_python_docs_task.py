"""The labelled task of the quickstart: held out as the corpus holds out, and without the answers in the sentences."""

import dataclasses
import json

import pytest

from bert_jax.data.corpus import Corpus
from bert_jax.data.prepare import prepare
from bert_jax.data.python_docs import Docstring
from bert_jax.data.sources import read_documents
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.tasks import text
from bert_jax.tasks.base import model_of_run
from tools.linear_models import on_words
from tools.python_docs_task import documents, make_task, modules_held_out, telling_words, write_rows


@pytest.fixture(scope="module")
def docstrings() -> list[Docstring]:
    names = [("alpha", "sorts numbers"), ("beta", "draws pictures"), ("gamma", "reads letters")]
    return [
        Docstring(
            f"{package}.m{module}", f"f{number}", f"This {what} in way {module} {number}. And more.\nA paragraph."
        )
        for package, what in names
        for module in range(40)
        for number in range(5)
    ]


def test_names_of_packages_are_replaced():
    telling = telling_words(["numpy", "sklearn", "jax"])
    sentences = {
        "Like numpy.ndarray.sum, but quicker.": "Like X, but quicker.",
        "A NumPy array or a jax.Array.": "A X array or a X.",
        "As in scikit-learn.": "As in X.",
        "A JAX-based jaxpr, see sklearn_extra.": "A X X, see X.",
        "No name in here.": "No name in here.",
    }
    assert {sentence: telling.sub("X", sentence) for sentence in sentences} == sentences


def test_the_task_holds_out_the_modules_of_the_corpus(docstrings, tmp_path):
    path = tmp_path / "documents.jsonl"
    write_rows(path, documents(docstrings))
    modules = modules_held_out(path, 0.2)
    task = make_task(docstrings, modules, num_labels=3, most_per_label=60)
    assert {sentence.module for sentence in task if sentence.is_held_out} <= modules
    assert not {sentence.module for sentence in task if not sentence.is_held_out} & modules
    assert len({sentence.text for sentence in task}) == len(task)
    train = [sentence.label for sentence in task if not sentence.is_held_out]
    assert [train.count(label) for label in ("alpha", "beta", "gamma")] == [60, 60, 60]

    tokenizer = Tokenizer.train((document.text for document in read_documents(f"jsonl:{path}")), 120)
    prepare(read_documents(f"jsonl:{path}"), tokenizer, tmp_path / "corpus", source="x", held_out_fraction=0.2)
    assert Corpus.open(tmp_path / "corpus", "validation").num_documents == len(modules)


def test_the_largest_packages_are_kept(docstrings):
    few = [Docstring("tiny.m", "f", "A sentence of a small package.")]
    task = make_task([*docstrings, *few], set(), num_labels=2, most_per_label=1000)
    assert {sentence.label for sentence in task} == {"alpha", "beta"}
    assert make_task(docstrings, set(), 2, 10) == make_task(docstrings, set(), 2, 10)


def test_the_classical_baseline(docstrings, tiny_bert, tmp_path):
    task = make_task(docstrings, {f"{name}.m1" for name in ("alpha", "beta", "gamma")}, 3, 100)
    for name, wanted in (("train", False), ("validation", True)):
        rows = [sentence._asdict() for sentence in task if sentence.is_held_out == wanted]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = dataclasses.replace(
        text.Config(init_from=str(tiny_bert), model=model_of_run(tiny_bert)),
        data=text.DataConfig(str(tmp_path / "train.jsonl"), str(tmp_path / "validation.jsonl"), sequence_length=16),
    )
    assert on_words(text.Task.create(config, tmp_path))["accuracy"] == 1.0

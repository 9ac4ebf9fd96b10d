"""The labelled task of the quickstart: the same modules are held out as in the corpus, and no simple rule finds the code."""

import dataclasses

import pytest

from bert_jax.data.corpus.format import Corpus
from bert_jax.data.corpus.prepare import prepare
from bert_jax.data.datasets.conll import read_sentences
from bert_jax.data.sources.documents import read_documents
from bert_jax.data.sources.python_docs import Docstring
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.tasks import tokens
from bert_jax.tasks.base import model_of_run
from tools.linear_models import on_words
from tools.python_docs_task import (
    TRAIN,
    VALIDATION,
    documents,
    make_task,
    marked_sentences,
    modules_held_out,
    write_columns,
    write_rows,
)


def docstring(marked: str, module: str = "a.b") -> Docstring:
    """A docstring from a text with its code in backticks."""
    pieces, text, code = marked.split("`"), "", []
    for number, piece in enumerate(pieces):
        if number % 2:
            code.append((len(text), len(text) + len(piece)))
        text += piece
    return Docstring(module, "f", text, tuple(code))


@pytest.fixture(scope="module")
def docstrings() -> list[Docstring]:
    return [
        docstring(f"If `{name}` is given, then way {module} is taken {number} times.", f"package.m{module}")
        for module in range(100)
        for number, name in enumerate(("axis", "out", "where", "dtype"))
    ]


def test_words_and_tags_of_a_sentence():
    (sentence,) = marked_sentences(
        docstring("Nothing here.\nIf `axis` is given, then `None` is (not) returned. An end.")
    )
    assert sentence.words == ("If", "axis", "is", "given", ",", "then", "None", "is", "(", "not", ")", "returned", ".")
    assert [word for word, tag in zip(sentence.words, sentence.tags, strict=True) if tag != "O"] == ["axis", "None"]
    assert set(sentence.tags) == {"O", "B-CODE"} and sentence.module == "a.b"


@pytest.mark.parametrize(
    "marked",
    [
        "If axis is given, then the sum is taken along it.",  # no code
        "If `axis_name` is given, then the sum is taken along it.",  # a rule finds it
        "If `axis` is given, then the sum of dtype_x is returned.",  # code that is not marked
        "If `axis` is given, then np.sum is called along it.",
        "If `axis` is given, then the *other* one is not.",  # other markup, perhaps for code
        "If `the axis` is given, then the sum is taken along it.",  # two words
        "If `axis`es are given, then the sums are taken along them.",  # ends within a word
        "axis: if `given`, the sum is taken along it.",  # the heading is code
        "`a` `b` `c` `d` is `e`.",  # more code than prose
        "If `axis` is given.",  # too short
    ],
)
def test_sentences_that_are_left_out(marked):
    assert not list(marked_sentences(docstring(marked)))


def test_the_task_holds_out_the_modules_of_the_corpus(docstrings, tmp_path):
    path = tmp_path / "documents.jsonl"
    write_rows(path, documents(docstrings))
    assert "`" not in path.read_text()
    modules = modules_held_out(path, 0.2)
    task = make_task([*docstrings, *docstrings], modules, num_training=1000, num_validation=1000)
    assert {sentence.module for sentence in task[VALIDATION]} == modules
    assert not {sentence.module for sentence in task[TRAIN]} & modules
    words = [sentence.words for part in task.values() for sentence in part]
    assert len(set(words)) == len(words) == len(docstrings)

    tokenizer = Tokenizer.train((document.text for document in read_documents(f"jsonl:{path}")), 120)
    prepare(read_documents(f"jsonl:{path}"), tokenizer, tmp_path / "corpus", source="x", held_out_fraction=0.2)
    assert Corpus.open(tmp_path / "corpus", "validation").num_documents == len(modules)


def test_draws_of_other_seeds_have_the_same_test(docstrings):
    modules = {f"package.m{number}" for number in range(50)}
    first, again, other = (make_task(docstrings, modules, count, 20, seed) for count, seed in ((9, 0), (5, 0), (9, 1)))
    assert len(first[TRAIN]) == 9 and first[TRAIN][:5] == again[TRAIN] and first[TRAIN] != other[TRAIN]
    assert first[VALIDATION] == again[VALIDATION] == other[VALIDATION] and len(first[VALIDATION]) == 20


def test_the_linear_baseline(docstrings, tiny_bert, tmp_path):
    for name, sentences in make_task(docstrings, {f"package.m{number}" for number in range(9)}, 200, 200).items():
        write_columns(tmp_path / name, sentences)
    assert len(read_sentences(tmp_path / VALIDATION)) == 36
    config = dataclasses.replace(
        tokens.Config(init_from=str(tiny_bert), model=model_of_run(tiny_bert)),
        data=tokens.DataConfig(str(tmp_path / TRAIN), str(tmp_path / VALIDATION), sequence_length=16),
    )
    assert on_words(tokens.Task.create(config, tmp_path))["f1"] == 1.0

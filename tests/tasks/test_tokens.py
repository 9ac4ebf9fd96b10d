"""Labels for words: where they stand in an example, long sentences, documents, scores, predictions."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import metrics as seqeval
from seqeval.scheme import BILOU, IOBES

import bert_jax
from bert_jax.config import to_config_dict
from bert_jax.data.datasets.conll import read_sentences
from bert_jax.data.datasets.schemes import Entity, entities, labels_of, tags_of
from bert_jax.data.inputs import read_inputs
from bert_jax.errors import UserError
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks import tokens
from bert_jax.tasks.base import create
from bert_jax.tasks.finetuning.scores import entity_scores
from bert_jax.trained import load_predictor, run_evaluation
from tests.running import command, run

SENTENCES = [
    ("the old river", "O B-age B-place"),
    ("a quiet ship on the old river", "O O B-thing O O B-age B-place"),
    ("the river ship was old", "O B-thing I-thing O B-age"),
    ("xyzzy a ship", "O O B-thing"),  # a word of several pieces
] * 5


def write(path, sentences, document_of=5) -> str:
    lines = []
    for number, (words, tags) in enumerate(sentences):
        lines += ["-DOCSTART- O", ""] if number % document_of == 0 else []
        lines += [f"{word} {tag}" for word, tag in zip(words.split(), tags.split(), strict=True)] + [""]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def config(tmp_path):
    path = write(tmp_path / "words", SENTENCES)
    return tokens.Config(data=tokens.DataConfig(train=path, validation=path))


def task_of(config, tiny_bert, tmp_path, length=16, context="sentence"):
    data = tokens.DataConfig(config.data.train, config.data.validation, context, length)
    model = tokens.Config(init_from=str(tiny_bert), data=data)
    return create(to_config_dict(model), tmp_path / "none")


@pytest.mark.parametrize("context", tokens.CONTEXTS)
@pytest.mark.parametrize("length", [6, 9, 16])
def test_every_word_is_labelled_once(config, tiny_bert, tmp_path, length, context):
    task = task_of(config, tiny_bert, tmp_path, length, context)
    labels = []
    for item in task.training_items:
        assert item.length <= length
        ids, places = item.tokens["input_ids"], np.flatnonzero(item.tokens["token_weights"])
        assert ids[0] == task.tokenizer.cls_id and ids[-1] == task.tokenizer.sep_id and 0 not in places
        assert not any(token.startswith("##") for token in task.tokenizer.tokens(ids[places]))
        labels += [task.labels[number] for number in item.tokens["token_labels"][places]]
    assert labels == " ".join(tags for _, tags in SENTENCES).split()
    if context == "document" and length == 16:
        assert len(task.training_items) < len(SENTENCES)


def test_training_and_prediction(config, train):
    fast = {"optimizer.learning_rate": 1e-2, "model.dropout": 0.0, "model.attention_dropout": 0.0}
    scores, workdir = train(config, num_epochs=40.0, **fast)
    assert scores["f1"] > 0.9 and {"f1/age", "precision", "recall"} <= scores.keys()
    assert json.loads((workdir / "labels.json").read_text())[:3] == ["O", "B-age", "I-age"]
    task, params = load_predictor(run_folder.get_config(str(workdir)), workdir, None)
    text = "a quiet  ship, on the old river."
    texts = [text, " ", "(the U.N.'s o\u0301ld ship)", "the old river " * 20]
    answer, empty, marked, _ = task.predict(params, [{"text": text} for text in texts])
    assert answer["words"] == ["a", "quiet", "ship", ",", "on", "the", "old", "river", "."]
    assert marked["words"] == ["(", "the", "U.N.'s", "o\u0301ld", "ship", ")"] and len(marked["tags"]) == 6
    for entity in answer["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"] and 0 < entity["score"] <= 1
    assert ("thing", "ship") in [(entity["type"], entity["text"]) for entity in answer["entities"]]
    assert empty == {"words": [], "tags": [], "scores": [], "entities": []}


def test_words_that_are_cut_already(config, train, tmp_path):
    _, workdir = train(config, num_epochs=1.0)
    predictor = bert_jax.Predictor.load(workdir)
    words = ["the ol", "d", "(river)"]
    answer, _ = predictor.predict(
        [{"text": " the old  (river) ", "words": words}, {"text": "a ship", "words": "no list"}]
    )
    assert answer["words"] == words and len(answer["tags"]) == 3
    for wrong in (["the", "old"], [1]):
        with pytest.raises(UserError, match="do not make up the text"):
            predictor.predict([{"text": "the old (river)", "words": wrong}])

    (tmp_path / "in.conll").write_text("the\nold\n\nship NN\n")
    run(command("predict", f"--workdir={workdir}", f"--input={tmp_path}/in.conll", f"--output={tmp_path}/out.conll"))
    tags = [tag for answer in predictor.predict(["the old", "ship"]) for tag in answer["tags"]]
    assert (tmp_path / "out.conll").read_text() == "the {}\nold {}\n\nship NN {}\n".format(*tags)


tags = st.lists(st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y"]), min_size=6, max_size=6)


@settings(max_examples=50)
@given(st.lists(st.tuples(tags, tags), min_size=1, max_size=5))
def test_scores_are_those_of_whole_entities(pairs):
    gold, predicted = ([list(side) for side in sides] for sides in zip(*pairs, strict=True))
    gold, predicted = ([entities(t, "IOB2") for t in side] for side in (gold, predicted))
    found = {n: {(n, *e) for e in of_sentence} for n, of_sentence in enumerate(gold)}
    guessed = {n: {(n, *e) for e in of_sentence} for n, of_sentence in enumerate(predicted)}
    all_gold, all_guessed = set().union(*found.values()), set().union(*guessed.values())
    right = len(all_gold & all_guessed)
    scores = entity_scores(gold, predicted, [6] * len(gold))
    assert scores["f1"] == pytest.approx(2 * right / max(1, len(all_gold) + len(all_guessed)))
    for kind, count in Counter(entity[1] for entity in all_gold).items():
        of_kind = {e for e in all_guessed if e[1] == kind}
        expected = 2 * len({e for e in all_gold if e[1] == kind} & of_kind) / (count + len(of_kind))
        assert scores[f"f1/{kind}"] == pytest.approx(expected)


def test_labels_of_another_file(config, train, tmp_path):
    other = write(tmp_path / "other", [("the river", "O B-water")])
    with pytest.raises(UserError, match="tag B-water is not among those trained on, O, B-age"):
        train(config, **{"data.validation": other})
    with pytest.raises(UserError, match=r"data\.context='page' is not one of sentence, document"):
        train(config, **{"data.context": "page"})
    assert not (tmp_path / "run").exists()


NAMED = [  # with two neighbours of a type, which not every scheme tells apart
    ("the old river ship", [("age", 1, 2), ("thing", 2, 4)]),
    ("a ship the ship", [("thing", 0, 2), ("thing", 2, 4)]),
    ("on the quiet river", [("place", 1, 4)]),
    ("old river", [("age", 0, 1), ("place", 1, 2)]),
] * 5
STRICT = {"IOBES": IOBES, "BILOU": BILOU}


def write_entities(path, scheme) -> str:
    return write(
        path,
        [
            (words, " ".join(tags_of([Entity(*entity) for entity in found], len(words.split()), scheme)))
            for words, found in NAMED
        ],
    )


@pytest.mark.parametrize("scheme", ["IO", "IOB1", "IOBES", "BILOU"])
def test_every_scheme_is_trained_evaluated_and_predicted_in(scheme, train, tmp_path):
    path = write_entities(tmp_path / "train.conll", scheme)
    config = tokens.Config(data=tokens.DataConfig(train=path, validation=path))
    fast = {"optimizer.learning_rate": 1e-2, "model.dropout": 0.0, "model.attention_dropout": 0.0}
    scores, workdir = train(config, num_epochs=12.0, **fast)
    labels = json.loads((workdir / run_folder.LABELS).read_text())
    assert json.loads((workdir / run_folder.SCHEME).read_text()) == scheme and scores["f1"] > 0.3
    expected = labels_of(["age", "place", "thing"], scheme)
    assert labels == [label for label in expected if scheme != "IOB1" or label not in ("B-age", "B-place")]

    gold, found = ([s.tags for s in read_sentences(p)] for p in (path, workdir / "predictions" / "validation.conll"))
    gold, found = ([list(tags) for tags in side] for side in (gold, found))
    strict = {"mode": "strict", "scheme": STRICT[scheme]} if scheme in STRICT else {}
    assert seqeval.f1_score(gold, found, **strict) == pytest.approx(scores["f1"])

    # The same entities in another scheme: the same scores. Two neighbours of a type are one entity in IO.
    values = run_folder.get_config(str(workdir))
    values.data.validation = write_entities(tmp_path / "other.conll", "IOBES" if scheme == "IOB1" else "IOB1")
    (again,) = run_evaluation(values, workdir, [], tmp_path / "results").values()
    assert (again["f1"] == pytest.approx(scores["f1"])) == (scheme != "IO")
    assert again["loss"] == pytest.approx(scores["loss"])

    predictor = bert_jax.Predictor.load(workdir)
    answers = predictor.predict([words for words, _ in NAMED])
    assert [answer["tags"] for answer in answers] == found
    for answer, tags in zip(answers, found, strict=True):
        words = answer["words"]
        spans = [(entity["type"], entity["text"]) for entity in answer["entities"]]
        assert spans == [(kind, " ".join(words[first:after])) for kind, first, after in entities(tags, scheme)]


def test_a_scheme_may_be_chosen(tiny_bert, tmp_path):
    path = write_entities(tmp_path / "train.conll", "IOB2")

    def created(scheme):
        data = tokens.DataConfig(train=path, validation=path, sequence_length=16, scheme=scheme)
        return create(to_config_dict(tokens.Config(init_from=str(tiny_bert), data=data)), tmp_path / "none")

    with pytest.raises(UserError, match=r"data\.scheme: 'BIO' is not one of IO, IOB1, IOB2, IOBES, BILOU, BMES, plain"):
        created("BIO")
    assert created("").labels == labels_of(["age", "place", "thing"], "IOB2")
    assert created("plain").labels == ["B-age", "B-place", "B-thing", "I-place", "I-thing", "O"]


def test_parts_of_speech(train, tmp_path):
    tagged = [("the old river", "DT JJ NN"), ("a quiet ship", "DT JJ NN"), ("on a ship", "IN DT NN")] * 6
    path = write(tmp_path / "train.conll", tagged)
    config = tokens.Config(data=tokens.DataConfig(train=path, validation=path))
    scores, workdir = train(config, num_epochs=2.0)
    assert json.loads((workdir / run_folder.LABELS).read_text()) == ["DT", "IN", "JJ", "NN"]
    predicted = [sentence.tags for sentence in read_sentences(workdir / "predictions" / "validation.conll")]
    pairs = [
        (g, f)
        for (_, gold), found in zip(tagged, predicted, strict=True)
        for g, f in zip(gold.split(), found, strict=True)
    ]
    assert scores["accuracy"] == pytest.approx(np.mean([gold == found for gold, found in pairs]))
    of_class = []
    for tag in {tag for pair in pairs for tag in pair}:
        right = sum(pair == (tag, tag) for pair in pairs)
        of_class.append(2 * right / sum((gold == tag) + (found == tag) for gold, found in pairs))
    assert scores["macro_f1"] == pytest.approx(np.mean(of_class)) and "f1" not in scores
    assert run_folder.read_config(workdir)["checkpoint"]["best_metric"] == "eval/accuracy"
    (answer,) = bert_jax.Predictor.load(workdir).predict(["the old river"])
    assert answer == {"words": ["the", "old", "river"], "tags": list(predicted[0]), "scores": answer["scores"]}


def test_words_without_an_entity(config, train, tmp_path):
    (tmp_path / "none.conll").write_text("the O\nship O\n")
    with pytest.raises(UserError, match=r"none\.conll: every tag is O; there is nothing to classify"):
        train(config, "none", **{"data.train": str(tmp_path / "none.conll")})


def test_documents_and_calibration(config, train):
    """Training, scores and predictions with examples of several sentences, and scores of predict by a temperature."""
    settings = {"data.context": "document", "calibrated": True, "num_epochs": 2.0}
    scores, workdir = train(config, **settings)
    assert json.loads((workdir / run_folder.TEMPERATURE).read_text()) == scores["temperature"] > 0
    predicted = (workdir / "predictions" / "validation.conll").read_text().splitlines()
    given = (workdir.parent / "words").read_text().splitlines()
    assert [line.rsplit(" ", 1)[0] if line and "DOCSTART" not in line else line for line in predicted] == given
    found = bert_jax.Predictor.load(workdir)
    assert found.task.temperature == scores["temperature"]
    shutil.copy(workdir.parent / "words", workdir.parent / "words.conll")
    with read_inputs(str(workdir.parent / "words.conll"), ("text",)) as inputs:
        tags = [tag for answer in found.predict(list(inputs)) for tag in answer["tags"]]
    assert tags == [line.split()[-1] for line in predicted if line and "DOCSTART" not in line], "read in documents, too"
    (answer,) = found.predict(["the old river"])
    assert len(answer["tags"]) == 3

"""Schemes of tags: the entities that they mark, those that are malformed, detection, and scores against seqeval's."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval import metrics as seqeval
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOBES, Tokens

from bert_jax.data.datasets.schemes import (
    SCHEMES,
    Entity,
    entities,
    labels_of,
    scheme_of_labels,
    scheme_of_sequences,
    tags_of,
)
from bert_jax.tasks.finetuning.scores import entity_scores

# "in New York Ada Lee King met Bo Cy": two persons at the end are neighbours.
FOUND = [Entity("LOC", 1, 3), Entity("PER", 3, 6), Entity("PER", 7, 8), Entity("PER", 8, 9)]
TAGS = {
    "IO": "O I-LOC I-LOC I-PER I-PER I-PER O I-PER I-PER",
    "IOB1": "O I-LOC I-LOC I-PER I-PER I-PER O I-PER B-PER",
    "IOB2": "O B-LOC I-LOC B-PER I-PER I-PER O B-PER B-PER",
    "IOBES": "O B-LOC E-LOC B-PER I-PER E-PER O S-PER S-PER",
    "BILOU": "O B-LOC L-LOC B-PER I-PER L-PER O U-PER U-PER",
    "BMES": "O B-LOC E-LOC B-PER M-PER E-PER O S-PER S-PER",
}
BRACKETED = {"IOBES": IOBES, "BILOU": BILOU}  # seqeval has no BMES


@pytest.mark.parametrize("scheme", TAGS)
def test_entities_and_their_tags(scheme):
    tags = TAGS[scheme].split()
    assert tags_of(FOUND, 9, scheme) == tags
    assert entities(tags, scheme) == (FOUND if scheme != "IO" else [*FOUND[:2], ("PER", 7, 9)])
    assert scheme_of_sequences([tags]) == scheme
    assert tags_of([Entity("", 1, 3)], 9, scheme)[:3] == [tag[0] for tag in tags[:3]]
    assert entities(["I", "O"], "IOB2") == [("", 0, 1)]


@pytest.mark.parametrize("scheme", sorted(set(TAGS) - {"IO"}))
@given(st.lists(st.tuples(st.sampled_from(["x", "y", "B-x"]), st.integers(1, 4), st.integers(0, 2)), max_size=6))
def test_what_is_written_is_read_again(scheme, parts):
    found, length = [], 0
    for of_type, size, gap in parts:
        found.append(Entity(of_type, length + gap, length + gap + size))
        length += gap + size
    tags = tags_of(found, length, scheme)
    assert entities(tags, scheme) == found
    if scheme in BRACKETED:
        assert [(e.tag, e.start, e.end) for e in Tokens(tags, BRACKETED[scheme]).entities] == found
    assert set(tags) <= set(labels_of({of_type for of_type, _, _ in found}, scheme))


@pytest.mark.parametrize("scheme", BRACKETED)
@given(st.data())
def test_malformed_brackets_mark_what_they_do_for_seqeval(scheme, data):
    labels = labels_of(["x", "y"], scheme)
    tags = data.draw(st.lists(st.sampled_from(labels), min_size=1, max_size=8))
    assert entities(tags, scheme) == [(e.tag, e.start, e.end) for e in Tokens(tags, BRACKETED[scheme]).entities]


@given(st.lists(st.sampled_from(labels_of(["x", "y"], "IOB2")), max_size=8))
def test_other_schemes_mark_what_they_do_for_conlleval(tags):
    for scheme in ("IO", "IOB1", "IOB2"):
        assert entities(tags, scheme) == [(kind, first, last + 1) for kind, first, last in get_entities(tags)]


# Gold: PER 0-2, LOC 3, PER 4-5. Predicted: PER 0-2, LOC 3-4 (wrong), PER 5 (wrong), and in brackets a PER that is not closed.
GOLD = [Entity("PER", 0, 3), Entity("LOC", 3, 4), Entity("PER", 4, 6)]
PREDICTED = {
    "IO": "I-PER I-PER I-PER I-LOC I-LOC I-PER O",
    "IOB1": "I-PER I-PER I-PER I-LOC I-LOC I-PER O",
    "IOB2": "B-PER I-PER I-PER I-LOC I-LOC B-PER O",
    "IOBES": "B-PER I-PER E-PER B-LOC E-LOC S-PER B-PER",
    "BILOU": "B-PER I-PER L-PER B-LOC L-LOC U-PER B-PER",
    "BMES": "B-PER M-PER E-PER B-LOC E-LOC S-PER B-PER",
}


@pytest.mark.parametrize("scheme", PREDICTED)
def test_scores_of_a_case_worked_out_by_hand(scheme):
    predicted = PREDICTED[scheme].split()
    scores = entity_scores([GOLD], [entities(predicted, scheme)], [7])
    # one of 3 is found, one of 3 predicted is right; of PER one of 2 and one of 2
    expected = {"f1": 1 / 3, "precision": 1 / 3, "recall": 1 / 3, "f1/LOC": 0.0, "f1/PER": 1 / 2}
    assert scores == pytest.approx(expected)
    if scheme != "BMES":
        gold = tags_of(GOLD, 7, scheme)
        strict = {"mode": "strict", "scheme": BRACKETED[scheme]} if scheme in BRACKETED else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert seqeval.f1_score([gold], [predicted], **strict) == pytest.approx(1 / 3)


def test_scores_without_an_entity():
    assert entity_scores([[]], [[]], [3]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}


@pytest.mark.parametrize(
    "scheme, labels",
    [
        ("IOB2", "O B-PER I-PER B-LOC I-LOC"),
        ("IOB2", "B-PER I-PER"),
        ("IOB2", "O B-PER"),
        ("IOB2", "[CLS] [SEP] X O B-PER I-PER"),
        ("IOB2", "O B I"),
        ("IOB1", "O B-LOC I-LOC B-MISC I-MISC I-ORG I-PER"),
        ("IO", "O I-LOC I-PER"),
        ("IOBES", "O B-PER I-PER E-PER S-PER"),
        ("IOBES", "O S-PER"),
        ("BILOU", "U-PER L-PER I-PER B-PER O"),
        ("BMES", "O B-PER M-PER E-PER S-PER"),
        ("plain", "ADJ NOUN O X"),
        ("plain", "NOUN I-PER"),
        ("plain", "! $ & , A D E G L N O P R S T U V X Y Z"),  # of tweets: Gimpel et al. 2011
        ("plain", "O I-PER E-PER"),  # IOE
        ("plain", "LABEL_0 LABEL_1"),
    ],
)
def test_schemes_of_labels(scheme, labels):
    assert scheme in SCHEMES and scheme_of_labels(labels.split()) == scheme


@pytest.mark.parametrize(
    "scheme, tags",
    [
        ("IO", "I-x O I-y I-x"),
        ("IOB1", "I-x B-x O I-y"),
        ("IOB1", "I-x B-x B-x"),
        ("IOB2", "B-x O B-y I-y"),
        ("IOB2", "I-x O B-x"),  # begins with I- once, without any reason for IOB1
        ("IOB2", "I-x B-y"),  # in IOB1 a B- stands only after its own type
        ("IOBES", "O S-x"),
        ("BILOU", "U-x O"),
        (None, "I-x E-x"),
        (None, "B-x L-x S-x"),
        (None, "O O"),
    ],
)
def test_schemes_of_files(scheme, tags):
    assert scheme_of_sequences([tags.split()]) == scheme

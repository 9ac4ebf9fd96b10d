"""Cleaning: each option, its order and its counts; duplicates on both sides; any number of workers and interruptions."""

import random
import tempfile
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bert_jax.data.corpus import cleaning as cleaning_module
from bert_jax.data.corpus.cleaning import Cleaning, clean, inspect
from bert_jax.data.corpus.duplicates import LEAST_CHANCE, NUM_VALUES, HashSet, band_hashes, bands_for, chance_to_drop
from bert_jax.data.corpus.index import read_index
from bert_jax.data.sources.documents import Document, held_out
from bert_jax.errors import UserError
from tests.data.corpus.test_corpus import FRACTION, contents, make, some_documents

SIMILARITY = 0.8


def documents_of(*texts: str) -> list[Document]:
    return [Document(f"d{number}", text) for number, text in enumerate(texts)]


def cleaned(documents: list[Document], **options) -> tuple[list[str], dict[str, int]]:
    """The ids of the documents that stay, and the numbers of the others by reason."""
    dropped = Counter[str]()
    kept = list(clean(iter(documents), Cleaning(**options), dropped))
    return [document.id for document in kept], dict(dropped)


# ----------------------------------------------------------------------------------------------------------------------
# Options
# ----------------------------------------------------------------------------------------------------------------------


def test_nothing_is_dropped_or_changed_by_default():
    documents = documents_of("", "a", "a", "ﬁ e\u0301")
    dropped = Counter[str]()
    assert list(clean(documents, Cleaning(), dropped)) == documents and not dropped
    assert Cleaning().settings == {}


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_unicode(form):
    text = "ﬁ e\u0301 ½"
    (document,) = clean(documents_of(text), Cleaning(unicode=form), Counter())
    assert document == ("d0", unicodedata.normalize(form, text)) and document.text != text


def test_short_documents():
    assert cleaned(documents_of("abc", " ab\n", "abcd", ""), min_characters=3) == (["d0", "d2"], {"short": 2})
    assert cleaned(documents_of("e\u0301e\u0301"), min_characters=3, unicode="NFC") == ([], {"short": 1})


def test_regexes():
    documents = documents_of("one\ntwo", "three", "Lorem ipsum", "four")
    assert cleaned(documents, drop_regex=("(?m)^two$", "(?i)lorem")) == (["d1", "d3"], {"regex": 2})


def test_duplicates():
    documents = documents_of("e\u0301", "b", "\u00e9", "b", "b ")
    assert cleaned(documents, drop_duplicates=True) == (["d0", "d1", "d2", "d4"], {"duplicate": 1})
    assert cleaned(documents, drop_duplicates=True, unicode="NFC") == (["d0", "d1", "d4"], {"duplicate": 2})


def test_the_first_reason_counts():
    documents = documents_of("the same", "the same", "no", "no")
    options = {"min_characters": 3, "drop_regex": ("no",), "drop_duplicates": True}
    assert cleaned(documents, **options) == (["d0"], {"duplicate": 1, "short": 2})


def test_a_dropped_document_has_no_duplicates():
    """Otherwise nothing of it would stay."""
    documents = documents_of("short", "shortened", "shortened")
    assert cleaned(documents, min_characters=6, drop_duplicates=True)[0] == ["d1"]


def test_languages(py3langid):
    documents = documents_of(
        "The old farmer watched the quiet river all day, and nobody knew why he did not go home.",
        "Der alte Bauer sah den ganzen Tag auf den stillen Fluss, und niemand wusste, warum er nicht nach Hause ging.",
        "Le vieux fermier a regardé la rivière toute la journée, et personne ne savait pourquoi il ne rentrait pas.",
    )
    assert cleaned(documents, languages=("en",)) == (["d0"], {"language": 2})
    assert cleaned(documents, languages=("fr", "de")) == (["d1", "d2"], {"language": 1})
    assert Cleaning(languages=("de", "fr")).settings == {
        "languages": ["de", "fr"],
        "packages": {"py3langid": py3langid.__version__},
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unicode": "nfc"}, "unicode='nfc': unknown normal form; use one of none, NFC, NFKC"),
        ({"min_characters": -1}, "min_characters=-1: is negative; use 0"),
        (
            {"drop_regex": ("a", "(")},
            "drop_regex='(': an invalid regex (missing ), unterminated subpattern at position 0)",
        ),
        ({"drop_near_duplicates": 0.2}, "drop_near_duplicates=0.2: is not from 0.5 to below 1; use e.g. 0.8"),
        ({"drop_near_duplicates": float("nan")}, "drop_near_duplicates=nan: is not from 0.5 to below 1"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(UserError) as error:
        Cleaning(**options)
    assert str(error.value).startswith(message)


def test_an_unknown_language(py3langid):
    with pytest.raises(UserError, match=r"languages=english: not known to py3langid, only .* de .*; use some"):
        Cleaning(languages=("en", "english"))


@pytest.mark.parametrize(
    ("options", "package"), [({"languages": ("en",)}, "py3langid"), ({"drop_near_duplicates": 0.8}, "rensa")]
)
def test_a_package_that_is_missing(monkeypatch, options, package):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(cleaning_module.importlib, "import_module", missing)
    cleaning_module._known_languages.cache_clear()
    with pytest.raises(
        UserError, match=f"needs the package {package}, which is not installed; pip install -r requirements-clean"
    ):
        Cleaning(**options)


# ----------------------------------------------------------------------------------------------------------------------
# Hashes
# ----------------------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 15, 16, 1 << 56]), max_size=300),
    st.integers(0, 2**64 - 1),
)
def test_the_set_of_hashes(values, other):
    hashes = HashSet()
    for value in values:
        hashes.add(value)
        assert value in hashes
    distinct = {value or 1 for value in values}  # 0 is stored as 1
    assert len(hashes) == len(distinct) and ((other in hashes) == ((other or 1) in distinct))


def test_memory_of_a_hash():
    """12 to 24 bytes, once there are many."""
    draw, hashes = random.Random(0), HashSet()
    for count in range(1, 60_001):
        hashes.add(draw.getrandbits(64))
        if count in (20_000, 40_000, 60_000):
            size = sum(len(table) * table.itemsize for table in hashes._tables)
            assert 12 <= size / count <= 24
    assert len(hashes) == 60_000


def test_bands():
    for similarity in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
        bands, rows = bands_for(similarity)
        assert bands * rows <= NUM_VALUES and chance_to_drop(similarity, bands, rows) >= LEAST_CHANCE
        assert chance_to_drop(similarity - 0.25, bands, rows) < 0.5
    assert bands_for(0.8) == (13, 8)


def words(rng: np.random.Generator, count: int) -> list[str]:
    return [f"w{number}" for number in rng.integers(10_000, size=count)]


def near(rng: np.random.Generator, text: list[str], changes: int) -> list[str]:
    """A copy with other words at a few places."""
    places = rng.choice(len(text), changes, replace=False)
    return ["other" if place in places else word for place, word in enumerate(text)]


def shingles(text: str) -> set[tuple[str, ...]]:
    parts = text.split()
    return set(zip(*(parts[start:] for start in range(5)), strict=False))


def test_the_chance_of_a_pair_is_that_of_its_similarity(rensa):
    """Pairs of known similarity: measured and computed chances agree within four standard errors."""
    rng, pairs = np.random.default_rng(0), 400
    for changes in (1, 4, 10):
        shared, expected = 0, []
        for _ in range(pairs):
            one = words(rng, 200)
            texts = [" ".join(one), " ".join(near(rng, one, changes))]
            first, second = map(shingles, texts)
            expected.append(chance_to_drop(len(first & second) / len(first | second), *bands_for(SIMILARITY)))
            shared += bool(set(band_hashes(texts[0], SIMILARITY)) & set(band_hashes(texts[1], SIMILARITY)))
        mean = float(np.mean(expected))
        assert abs(shared / pairs - mean) <= 4 * np.sqrt(max(mean * (1 - mean), 1 / pairs) / pairs)


def test_case_and_white_space_do_not_matter(rensa):
    assert band_hashes("The  old\nriver and a ship", 0.8) == band_hashes("the old river AND a ship ", 0.8)
    assert band_hashes("one two", 0.8) != band_hashes("one three", 0.8)  # shorter than a shingle
    assert band_hashes(" \n", 0.8) == []


# ----------------------------------------------------------------------------------------------------------------------
# Near duplicates and the split
# ----------------------------------------------------------------------------------------------------------------------


def groups_of_near_duplicates(seed: int, groups: int = 12) -> list[Document]:
    """Groups of up to six documents that differ by a few words, in random order; ids spread them over both splits."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(groups):
        first = words(rng, 150)
        texts += [" ".join(near(rng, first, int(rng.integers(4)))) for _ in range(int(rng.integers(1, 7)))]
    return [Document(f"{seed}-{number}", texts[number]) for number in rng.permutation(len(texts))]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_near_duplicates_do_not_straddle_the_split_in_any_order(rensa, seed, order):
    documents = groups_of_near_duplicates(seed)
    order.shuffle(documents)
    dropped = Counter[str]()
    kept = list(clean(documents, Cleaning(drop_near_duplicates=SIMILARITY), dropped))
    assert len(kept) + dropped.total() == len(documents) and set(dropped) <= {"near_duplicate"}
    sides = {document.id: held_out(document.id, FRACTION) for document in kept}
    assume(len(set(sides.values())) == 2)
    bands = {document.id: set(band_hashes(document.text, SIMILARITY)) for document in kept}
    for one, other in ((one, other) for one in kept for other in kept if sides[one.id] and not sides[other.id]):
        assert not bands[one.id] & bands[other.id]
        first, second = shingles(one.text), shingles(other.text)
        assert len(first & second) / len(first | second) < 0.95  # which is dropped with a probability of 0.9999


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30))
def test_a_growing_source_changes_nothing_before(rensa, seed, count):
    documents = groups_of_near_duplicates(seed)
    options = {"drop_near_duplicates": SIMILARITY, "drop_duplicates": True, "min_characters": 3}
    before, after = (cleaned(part, **options)[0] for part in (documents[:count], documents))
    assert after[: len(before)] == before


def test_the_number_of_near_duplicates(rensa):
    rng = np.random.default_rng(0)
    first = words(rng, 300)
    texts = [" ".join(first), " ".join(words(rng, 300)), " ".join(near(rng, first, 1)), " ".join(first)]
    documents = documents_of(*texts)
    assert cleaned(documents, drop_near_duplicates=0.8) == (["d0", "d1"], {"near_duplicate": 2})
    both = {"drop_near_duplicates": 0.8, "drop_duplicates": True}
    assert cleaned(documents, **both) == (["d0", "d1"], {"near_duplicate": 1, "duplicate": 1})
    assert inspect(Cleaning(**both), documents[0]).bands == band_hashes(texts[0], 0.8)


# ----------------------------------------------------------------------------------------------------------------------
# Preparing
# ----------------------------------------------------------------------------------------------------------------------


def repeated_documents() -> list[Document]:
    """Documents of which many are repeated, exactly or nearly."""
    documents = some_documents(30)
    copies = [Document(f"copy-{document.id}", document.text) for document in documents[::2]]
    nearly = [Document(f"near-{document.id}", f"{document.text} abc") for document in documents[::3]]
    mixed = documents + copies + nearly
    random.Random(0).shuffle(mixed)
    return mixed


ALL = {"unicode": "NFKC", "min_characters": 5, "drop_regex": ("^ab",), "drop_duplicates": True}


def test_counts_add_up_and_nothing_depends_on_workers_or_interruptions(rensa, tmp_path, monkeypatch):
    monkeypatch.setattr(cleaning_module, "_CHUNK_CHARACTERS", 5_000)  # several chunks
    documents, cleaning = repeated_documents(), Cleaning(**ALL, drop_near_duplicates=0.9)
    summary = make(tmp_path / "one", documents, cleaning=cleaning)
    assert len(documents) == summary.documents + summary.skipped + sum(summary.dropped.values())
    assert summary.dropped["near_duplicate"] > 2 and summary.dropped["duplicate"] > 2

    make(tmp_path / "three", documents, cleaning=cleaning, workers=3)
    assert contents(tmp_path / "three") == contents(tmp_path / "one")

    for cut in (7, 25, 50):
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "resumed", interrupted(documents, cut), cleaning=cleaning, workers=1 + cut % 2)
    make(tmp_path / "resumed", documents, cleaning=cleaning)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "one")


def interrupted(documents: list[Document], cut: int):
    yield from documents[:cut]
    raise KeyboardInterrupt


texts = st.lists(st.sampled_from(["abc", "a b", "c" * 50, "", "dada", "e\u0301", "é"]), min_size=1, max_size=20)


@settings(max_examples=25, deadline=None)
@given(texts, st.sampled_from(["none", "NFC"]), st.integers(0, 5), st.booleans())
def test_every_document_is_kept_or_counted(texts, unicode, min_characters, drop_duplicates):
    options = {"unicode": unicode, "min_characters": min_characters, "drop_duplicates": drop_duplicates}
    kept, dropped = cleaned(documents_of(*texts), **options)
    normal = [text if unicode == "none" else unicodedata.normalize(unicode, text) for text in texts]
    long = [number for number, text in enumerate(normal) if len(text) >= min_characters]
    first = [number for number in long if not drop_duplicates or normal.index(normal[number]) == number]
    assert kept == [f"d{number}" for number in first] and all(a < b for a, b in pairwise(first))
    assert dropped.get("short", 0) == len(texts) - len(long) and dropped.get("duplicate", 0) == len(long) - len(first)


def test_settings_are_recorded_and_compared(tmp_path):
    cleaning = Cleaning(**ALL)
    documents = some_documents(12)
    make(tmp_path / "c", documents, cleaning=cleaning)
    recorded = read_index(tmp_path / "c")["cleaning"]
    assert recorded == {"unicode": "NFKC", "min_characters": 5, "drop_regex": ["^ab"], "drop_duplicates": True}
    assert make(tmp_path / "c", [], cleaning=cleaning).already
    with pytest.raises(UserError, match=r"cleaning was \{.*'NFKC'.*\}, now \{\}\); use these or a new folder"):
        make(tmp_path / "c", documents)
    make(tmp_path / "plain", documents)
    assert "cleaning" not in read_index(tmp_path / "plain")
    with pytest.raises(UserError, match=r"cleaning was \{\}, now \{'drop_duplicates': True\}"):
        make(tmp_path / "plain", documents, cleaning=Cleaning(drop_duplicates=True))


def test_nothing_left():
    with tempfile.TemporaryDirectory() as folder, pytest.raises(UserError) as error:
        make(Path(folder) / "c", documents_of("ab", "cd"), cleaning=Cleaning(min_characters=3))
    problem = "all documents are empty or dropped (2 short); check the source and the options of cleaning"
    assert str(error.value) == f"test: {problem}"

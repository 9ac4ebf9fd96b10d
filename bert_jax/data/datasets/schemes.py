"""Tagging schemes for entities in a sequence of words, and plain tags, which mark no entities.

| Scheme | Tags of "New York", "Ada Lee King" and "Rome" | Entities |
|---|---|---|
| IO | I I, I I I, I | runs of one type; adjacent entities of one type are merged |
| IOB1 | as IO, but B if an entity directly follows one of the same type | as in CoNLL-2003 |
| IOB2 (BIO) | B I, B I I, B | |
| IOBES | B E, B I E, S | |
| BILOU | B L, B I L, U | |
| BMES | B E, B M E, S | |

A tag is O (outside), a letter and a type (`B-PER`) or, without types, a single letter.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

OUTSIDE = "O"
PLAIN = "plain"  # labels that mark no entities, e.g. parts of speech
_LETTERS = {"IO": "I", "IOB1": "BI", "IOB2": "BI", "IOBES": "BIES", "BILOU": "BILU", "BMES": "BMES"}
# Begin, inside, end, single.
_BRACKETED = {name: tuple(letters) for name, letters in _LETTERS.items() if len(letters) == 4}
SCHEMES = (*_LETTERS, PLAIN)
_TAG = re.compile(r"([BIESLUM])(?:-(.+))?", re.DOTALL)


class Entity(NamedTuple):
    type: str  # "" without types
    first: int  # index of its first word
    after: int  # index of the word after its last


def entities(tags: Sequence[str], scheme: str) -> list[Entity]:
    """Returns the entities that the tags of one sentence mark.

    IO, IOB1 and IOB2 are read as by the script conlleval (Tjong Kim Sang and Buchholz 2000): an I- that continues nothing
    starts an entity. In IOBES, BILOU and BMES only complete entities count, as in seqeval's strict mode: S, or B, any number
    of I, and E, all of one type. All other tags count as O.
    """
    return _bracketed(tags, *_BRACKETED[scheme]) if scheme in _BRACKETED else _runs(tags)


def _runs(tags: Sequence[str]) -> list[Entity]:
    entities = list[Entity]()
    for place, tag in enumerate(tags):
        letter, of_type = _split(tag)
        if letter == "I" and entities and entities[-1].after == place and entities[-1].type == of_type:
            entities[-1] = entities[-1]._replace(after=place + 1)
        elif letter in ("B", "I"):
            entities.append(Entity(of_type, place, place + 1))
    return entities


def _bracketed(tags: Sequence[str], begin: str, inside: str, end: str, single: str) -> list[Entity]:
    entities = list[Entity]()
    is_open, first, open_type = False, 0, ""
    for place, tag in enumerate(tags):
        letter, of_type = _split(tag)
        continues = is_open and of_type == open_type
        if letter == single:
            entities.append(Entity(of_type, place, place + 1))
        elif letter == end and continues:
            entities.append(Entity(of_type, first, place + 1))
        is_open = letter == begin or (letter == inside and continues)
        if letter == begin:
            first, open_type = place, of_type
    return entities


def tags_of(entities: Sequence[Entity], length: int, scheme: str) -> list[str]:
    """Returns the tags of a sentence of `length` words with these entities, which are in order and do not overlap."""
    tags = [OUTSIDE] * length
    before = Entity("", -1, -1)
    for entity in entities:
        of_type, first, after = entity
        letters = ["I"] * (after - first)
        if scheme in _BRACKETED:
            begin, inside, end, single = _BRACKETED[scheme]
            letters = [begin, *[inside] * (after - first - 2), end] if after - first > 1 else [single]
        elif scheme == "IOB2" or (scheme == "IOB1" and before.after == first and before.type == of_type):
            letters[0] = "B"
        tags[first:after] = [f"{letter}-{of_type}" if of_type else letter for letter in letters]
        before = entity
    return tags


def labels_of(types: Iterable[str], scheme: str) -> list[str]:
    """Returns all tags of a scheme for some types, in their order, O first."""
    pairs = ((letter, of_type) for of_type in types for letter in _LETTERS[scheme])
    return [OUTSIDE, *(f"{letter}-{of_type}" if of_type else letter for letter, of_type in pairs)]


def entity_tags(tags: Iterable[str]) -> set[str]:
    """Returns the tags that have the form of entity tags: LETTER-TYPE, or LETTER if all tags are single letters."""
    tags = set(tags)
    if OUTSIDE in tags and tags & {"B", "I"} and tags <= set("OBIESLUM"):
        return tags - {OUTSIDE}
    return {tag for tag in tags if len(tag) > 1 and _TAG.fullmatch(tag)}


def scheme_of_labels(labels: Sequence[str]) -> str:
    """Returns the scheme of a set of labels; IOB1 if an I-TYPE has no B-TYPE; PLAIN if they mark no entities.

    IOB1 and IOB2 may have the same labels; IOB2 is assumed, in which the same tags mark the same entities. Labels outside
    the scheme, such as [CLS], count as O.
    """
    tags = entity_tags(labels)
    if OUTSIDE not in labels and tags != set(labels):
        return PLAIN
    scheme = scheme_of_letters({tag[0] for tag in tags})
    if scheme == "IOB2" and any(tag[0] == "I" and f"B{tag[1:]}" not in tags for tag in tags):
        return "IOB1"
    return scheme or PLAIN


def scheme_of_sequences(sequences: Iterable[Sequence[str]]) -> str | None:
    """Returns the scheme of sequences of tags, some of which mark entities; None if no scheme has all their letters.

    With B and I: IOB1 if every B-TYPE follows the same type and some I-TYPE continues nothing, else IOB2.
    """
    sequences = list(sequences)
    scheme = scheme_of_letters({letter for tags in sequences for letter, _ in map(_split, tags) if letter})
    if scheme != "IOB2":
        return scheme
    begins = {"B": 0, "I": 0}  # tags not preceded by an entity of their type
    for tags in sequences:
        for (letter_before, type_before), (letter, of_type) in pairwise([("", ""), *map(_split, tags)]):
            if letter and not (letter_before and type_before == of_type):
                begins[letter] += 1
    return "IOB1" if begins["I"] and not begins["B"] else "IOB2"


def scheme_of_letters(letters: set[str]) -> str | None:
    """Returns the first scheme that has all letters; a letter that ends an entity requires B."""
    for scheme in ("IO", "IOB2", *_BRACKETED):
        closes = scheme in _BRACKETED and not letters <= {"B", _LETTERS[scheme][3]}
        if letters and letters <= set(_LETTERS[scheme]) and not (closes and "B" not in letters):
            return scheme
    return None


def _split(tag: str) -> tuple[str, str]:
    """Returns the letter and the type of a tag; two empty strings if it is outside of entities."""
    match = _TAG.fullmatch(tag)
    return (match[1], match[2] or "") if match else ("", "")

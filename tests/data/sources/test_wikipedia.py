"""Dumps of MediaWiki as a source: what is read of them, the text of their markup, and dumps that are damaged or hostile."""

import bz2
import gzip
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.sources import wikipedia_xml
from bert_jax.data.sources.documents import read_documents
from bert_jax.data.sources.wikitext import Converter
from tests.hostile.limits import accepted_or_refused, damaged_bytes, limited, python, refused

SITE = """<siteinfo><sitename>Wikipedia</sitename><dbname>dewiki</dbname><namespaces>
<namespace key="0" case="first-letter" /><namespace key="6" case="first-letter">Datei</namespace>
<namespace key="14" case="first-letter">Kategorie</namespace></namespaces></siteinfo>"""


def page(number: int, title: str, text: str, namespace: int = 0, more: str = "", model: str = "wikitext") -> str:
    revision = (
        f"<id>{number + 1000}</id><contributor><username>U</username><id>7</id></contributor><model>{model}</model>"
    )
    text = f'<text bytes="{len(text)}" xml:space="preserve">{escape(text)}</text>'
    head = f"<title>{escape(title)}</title><ns>{namespace}</ns><id>{number}</id>{more}"
    return f"<page>{head}<revision>{revision}{text}</revision></page>\n"


def dump(pages: Sequence[str], site: str = SITE) -> bytes:
    space = "http://www.mediawiki.org/xml/export-0.11/"
    return f'<mediawiki xmlns="{space}" version="0.11">\n{site}\n{"".join(pages)}</mediawiki>\n'.encode()


PAGES = [
    page(
        1,
        "Fähre & Schiff",
        "Die '''Fähre''' ist ein [[Schiff]].\n[[Datei:F.jpg|mini|Eine Fähre]]\n[[kategorie:Schiff]]",
    ),
    page(2, "Boot", "#WEITERLEITUNG [[Schiff]]", more='<redirect title="Schiff" />'),
    page(3, "Diskussion:Boot", "Ein Gespräch.", namespace=1),
    page(4, "Programm", "return {}", model="Scribunto"),
    page(5, "Leer", "{{Vorlage}}"),
    page(12, "Hafen", "Ein Ort für Schiffe < 20 m &amp; Boote."),
]
DOCUMENTS = [
    ("dewiki:1", "Fähre & Schiff\nDie Fähre ist ein Schiff."),
    ("dewiki:5", ""),
    ("dewiki:12", "Hafen\nEin Ort für Schiffe < 20 m & Boote."),
]


@pytest.mark.parametrize("suffix, compress", [(".xml", bytes), (".xml.bz2", bz2.compress)])
@pytest.mark.parametrize("workers", [1, 2])
def test_articles(tmp_path, monkeypatch, suffix, compress, workers):
    monkeypatch.setattr(wikipedia_xml, "_GROUP", 30)  # characters: several groups
    (tmp_path / f"a{suffix}").write_bytes(compress(dump(PAGES[:3])))
    (tmp_path / f"b{suffix}").write_bytes(compress(dump(PAGES[3:])))
    shares: list[float] = []
    documents = list(read_documents(f"wikipedia-xml:{tmp_path}/*{suffix}", progress=shares.append, workers=workers))
    assert documents == DOCUMENTS, "titles and text of articles; ids that do not depend on the files"
    assert shares == sorted(shares) and shares[0] == 0.0 and shares[-1] == 1.0


def test_a_dump_of_several_streams_and_revisions(tmp_path):
    """As pages-articles-multistream has them, and as complete histories have them: the last revision counts."""
    whole = dump([PAGES[0].replace("<revision>", "<revision><text>Ein älterer Text</text></revision><revision>")])
    path = tmp_path / "a.xml.bz2"
    path.write_bytes(b"".join(bz2.compress(whole[start : start + 50]) for start in range(0, len(whole), 50)))
    assert list(read_documents(f"wikipedia-xml:{path}")) == DOCUMENTS[:1]
    path.write_bytes(bz2.compress(dump(PAGES[:1], site="")))
    assert [document.id for document in read_documents(f"wikipedia-xml:{path}")] == ["a.xml.bz2:1"]


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("One line\ngoes on.\n\nAnother\n", "One line goes on.\nAnother"),
        ("'''Bold''' ''italic'' '''''both'''''", "Bold italic both"),
        ("[[a|b]] [[c]]s [[d#e|f ''g'']] [[:Category:X]] [[:Category:X|y]]", "b cs f g Category:X y"),
        ("A [[File:X.jpg|thumb|A [[link]].]][[image:Y.png]][[Kategorie:Z]][[de:A]][[wikt:a|b]]", "A b"),
        ("[http://a.org a site], [http://a.org], http://a.org", "a site,, http://a.org"),
        ("a{{template|b={{inner}}|[[c]]}} {{{argument|d}}}<!-- e -->f<ref>g</ref><ref name=h />.", "a f."),
        ("(; {{a}}, 1 May 1900 {{b}}), ({{c}}) and {{d}} , end", "(1 May 1900), and, end"),
        ("* a\n* b\n** c\n; d : e\n# f\ng", "a\nb\nc\nd\ne\nf\ng"),
        ("intro\n{| class=x\n! a\n|-\n| b\n{|\n| c\n|}\n|}\nend", "intro\nend"),
        ("<table><tr><td>a</td></tr></table>b <math>x</math> <gallery>\nFile:X.jpg|c\n</gallery>", "b"),
        ("a<br>b<div>c</div><blockquote>d</blockquote>", "a\nb\nc\nd"),
        ("== A ==\ntext\n=== B ===\n<references />\n== C ==\n=== D ===\nmore\n== E ==\n{{f}}", "A\ntext\nC\nD\nmore"),
        ("__NOTOC__ a&nbsp;b &ndash; &#233; &lt;c&gt; <nowiki>[[d]]</nowiki>", "a b – é <c> [[d]]"),  # noqa: RUF001
        ("{| \n| a table\n|-\n| that does not end", ""),
    ],
)
def test_text_of_markup(wikitext, text):
    assert Converter(["Datei", "Kategorie"]).text(wikitext) == text


# fmt: off
PIECES = [
    "a ", "\n", "\n\n", "{{", "}}", "[[", "]]", "|", "''", "'''", "<ref>", "</ref>", "<b>", "</b>", "{|", "|}", "==", "=",
    "*", ";", ":", "#", "&amp;", "&#9;", "&#xFFFFFFFF;", "<!--", "-->", "File:", "http://x.y ", "[", "]", "<nowiki>", "\x01",
]
# fmt: on


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text(max_size=40))
def test_any_markup_gives_lines_of_text(wikitext):
    text = Converter().text(wikitext)
    assert text == "\n".join(" ".join(line.split()) for line in text.split("\n")) and "\x01" not in text
    assert text.split("\n") == [""] or all(text.split("\n"))
    plain = "".join(character for character in wikitext if character.isalnum() or character == " ")
    assert Converter().text(f"x{plain}").split() == f"x{plain}".split(), "words without markup stay as they are"


# ----------------------------------------------------------------------------------------------------------------------
# Damaged and hostile dumps
# ----------------------------------------------------------------------------------------------------------------------


def until_error(path: Path, *parts: str) -> list[str]:
    """The ids of the documents before an error whose message has `parts`."""
    ids = list[str]()
    with refused(str(path), *parts):
        for document in read_documents(f"wikipedia-xml:{path}"):
            ids.append(document.id)
    return ids


def test_a_dump_that_ends_early(tmp_path, monkeypatch):
    monkeypatch.setattr(wikipedia_xml, "_GROUP", 1)
    whole, path = dump(PAGES), tmp_path / "a.xml"
    for size in (0, 1, 10, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:size])
        ids = until_error(path, "ends early", "get the file again")
    assert ids == ["dewiki:1", "dewiki:5", "dewiki:12"], "the error is raised when it is reached"
    path = tmp_path / "a.xml.bz2"
    path.write_bytes(bz2.compress(whole)[:-20])
    until_error(path, "truncated or damaged", "get the file again")


def test_files_that_are_no_dumps(tmp_path):
    path = tmp_path / "a.xml"
    for content, message in [
        (b"<html><page/></html>", "not a dump of MediaWiki, because it begins with <html>; use a dump of pages"),
        (b"plain text", "not XML, or damaged"),
        (dump(PAGES).replace(b"</page>", b"</pgae>", 1), "not XML, or damaged"),
        (b'<!DOCTYPE mediawiki [<!ENTITY a "aaaa">]>' + dump(PAGES), "has a document type declaration"),
        (bz2.compress(dump(PAGES)), "not XML, or damaged"),
    ]:
        path.write_bytes(content)
        until_error(path, message)


def test_without_mwparserfromhell(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mwparserfromhell", None)
    with refused(
        "needs the package mwparserfromhell, which is not installed; pip install -r requirements-wikipedia.txt, or "
        "bert_jax[wikipedia]"
    ):
        list(read_documents(f"wikipedia-xml:{tmp_path}/a.xml"))


def test_pages_of_broken_markup_are_left_out(tmp_path, caplog):
    """Parsing them would take hours."""
    path = tmp_path / "a.xml"
    texts = ["{{a|[[b|" * 100_000, "<b>" * 100_000, "{|\n" * 100_000, "whole"]
    path.write_bytes(dump([page(number, "T", text) for number, text in enumerate(texts, 1)]))
    assert [document.text for document in read_documents(f"wikipedia-xml:{path}")] == ["", "", "", "T\nwhole"]
    assert caplog.text.count("a page is left out, because its markup is broken") == 3


def test_damaged_dumps(tmp_path_factory):
    path, whole = tmp_path_factory.mktemp("damaged") / "a.xml", dump(PAGES)

    @settings(max_examples=80, deadline=None)
    @given(damaged_bytes(whole))
    def check(content):
        path.write_bytes(content)
        accepted_or_refused(lambda: list(read_documents(f"wikipedia-xml:{path}")))

    check()


READ = """
import sys
from bert_jax.data.sources.documents import read_documents
print(sum(len(document.text) for document in read_documents(sys.argv[1])))
"""


def test_memory_does_not_grow_with_the_dump(tmp_path):
    peaks = []
    for count in (20, 220):
        path = tmp_path / f"{count}.xml.gz"
        text = "A [[paragraph]] of ''text''.<ref>A source.</ref>" + "word " * 20_000
        path.write_bytes(gzip.compress(dump([page(number, "T", text) for number in range(1, count)]), 1))
        ended = limited(python(READ, f"wikipedia-xml:{path}"), megabytes=400, seconds=60)
        assert ended.code == 0 and int(ended.stdout) > count * 90_000, ended
        peaks.append(ended.megabytes)
    assert peaks[1] < peaks[0] + 15, peaks  # of 22 MB of XML


def test_a_page_may_not_be_larger_than_any_of_mediawiki(tmp_path):
    path = tmp_path / "a.xml"
    text = f"<text>{'a' * 5_000_000}</text>"
    path.write_bytes(dump([f"<page><title>T</title><ns>0</ns><id>1</id><revision>{text}</revision></page>"]))
    assert until_error(path, "page 'T' has more than 4,194,304 characters") == []

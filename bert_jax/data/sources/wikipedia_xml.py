"""Reads the articles of MediaWiki's XML dumps, such as enwiki-latest-pages-articles.xml.bz2, in bounded memory.

Source of the format: mediawiki.org, Help:Export, "Export format".
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from xml.parsers import expat

from bert_jax.data.sources.base import Document, Progress
from bert_jax.data.sources.compressed import DAMAGES, decompressed
from bert_jax.data.sources.files import SourceFile, find_files, open_file
from bert_jax.data.sources.wikitext import Converter
from bert_jax.errors import UserError
from bert_jax.files import GET_AGAIN

_CHUNK = 1 << 16  # bytes of XML at a time
_LONGEST_PAGE = 1 << 23  # characters of its wikitext; MediaWiki allows 2 MiB
_REMEDY = "use a dump of pages, such as enwiki-latest-pages-articles.xml.bz2"
_PAGE_FIELDS = ("title", "ns", "id", "text", "model")
_SKIPPED_NAMESPACES = ("6", "14")  # of files and categories: links to them are not shown as text


def read_wikipedia(pattern: str, progress: Progress) -> Iterator[Document]:
    """Yields the articles of dumps: the title, then paragraphs. Skips redirects and pages that are no articles.

    The id of a document is the name of the wiki and the number of the page there, which are the same in all its dumps.

    Raises:
      UserError: mwparserfromhell is not installed, or as `read_documents`.
    """
    try:
        import mwparserfromhell  # noqa: F401
    except ImportError:
        remedy = "pip install mwparserfromhell, or bert_jax[wikipedia]"
        raise UserError(f"wikipedia-xml:{pattern}: needs mwparserfromhell, which is not installed; {remedy}") from None
    for file in find_files(pattern, progress):
        with open_file(file.path) as opened, decompressed(file.path, opened) as stream:
            yield from _articles(file, opened, stream)


def _articles(file: SourceFile, opened: BinaryIO, stream: BinaryIO) -> Iterator[Document]:
    """Yields the documents of a dump: `opened` is the file, `stream` its decompressed bytes."""
    reader = _Reader(file.path)
    converter: Converter | None = None
    is_ended = False
    while not is_ended:
        file.report(opened.tell())
        try:
            chunk = stream.read(_CHUNK)
        except DAMAGES as error:
            raise UserError(f"{file.path}: truncated or damaged ({error}); {GET_AGAIN}") from None
        is_ended = not chunk
        for page in reader.feed(chunk):
            converter = converter or Converter(reader.skipped_namespaces)
            text = converter.text(page["text"])
            yield Document(f"{reader.wiki or file.name}:{page['id']}", f"{page['title']}\n{text}" if text else "")


class _Reader:
    """Reads pages from pieces of XML."""

    def __init__(self, path: Path):
        self.wiki = ""  # dbname of the siteinfo: enwiki, dewiki ...
        self.skipped_namespaces = list[str]()  # their names in the language of the wiki
        self._path = path
        self._open = list[str]()  # names of the open elements
        self._pages = list[dict[str, str]]()  # that have ended
        self._page = dict[str, str]()
        self._text, self._length, self._is_kept, self._is_redirect = list[str](), 0, False, False
        self._parser = expat.ParserCreate("UTF-8")
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.StartDoctypeDeclHandler = self._doctype  # dumps have none, and entities of its own are a risk

    def feed(self, chunk: bytes) -> list[dict[str, str]]:
        """Returns the articles that end in a piece of XML; b"" is the end. Raises UserError if it is no XML of a dump."""
        self._pages = []
        try:
            self._parser.Parse(chunk, not chunk)
        except expat.ExpatError as error:
            is_early = not chunk and bool(self._open)
            problem = "ends early" if is_early else "not XML, or damaged"
            raise UserError(f"{self._path}: {problem} ({error}); {GET_AGAIN if is_early else _REMEDY}") from None
        return self._pages

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._open and name != "mediawiki":
            raise UserError(f"{self._path}: not a dump of MediaWiki, because it begins with <{name:.50}>; {_REMEDY}")
        parent = self._open[-1] if self._open else ""
        self._open.append(name)
        if name == "page":
            self._page, self._is_redirect = {}, False
        elif name == "redirect":
            self._is_redirect = True
        # The id of a page, not those of its revisions and their authors. Of several revisions the last one counts.
        is_of_page = name in _PAGE_FIELDS and parent in (("page",) if name == "id" else ("page", "revision", "content"))
        is_of_site = name == "dbname" or (name == "namespace" and attributes.get("key") in _SKIPPED_NAMESPACES)
        self._is_kept = is_of_page or is_of_site
        self._text, self._length = [], 0

    def _characters(self, text: str) -> None:
        if self._is_kept:
            self._text.append(text)
            self._length += len(text)
            if self._length > _LONGEST_PAGE:
                page = self._page.get("title", "")
                raise UserError(
                    f"{self._path}: page {page!r:.80} has more than {_LONGEST_PAGE:,} characters; {GET_AGAIN}"
                )

    def _end(self, name: str) -> None:
        self._open.pop()
        if self._is_kept:
            text = "".join(self._text)
            if name == "dbname":
                self.wiki = text
            elif name == "namespace":
                self.skipped_namespaces.append(text)
            else:
                self._page[name] = text
        self._is_kept = False
        if name == "page" and self._is_article():
            self._pages.append(self._page)

    def _is_article(self) -> bool:
        page = self._page
        is_wikitext = page.get("model", "wikitext") == "wikitext"
        is_whole = all(page.get(field) for field in ("id", "title", "text"))
        return not self._is_redirect and page.get("ns", "0") == "0" and is_wikitext and is_whole

    def _doctype(self, *_: object) -> None:
        raise UserError(f"{self._path}: has a document type declaration, which dumps have not; {_REMEDY}")

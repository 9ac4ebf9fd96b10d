"""Reads the articles of MediaWiki's XML dumps, such as enwiki-latest-pages-articles.xml.bz2, in bounded memory.

Source of the format: mediawiki.org, Help:Export, "Export format".
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple
from xml.parsers import expat

from bert_jax.data.sources.base import BadRecords, Document
from bert_jax.data.sources.compressed import DAMAGES, decompressed
from bert_jax.data.sources.files import SourceFile, open_file
from bert_jax.data.sources.wikitext import Converter
from bert_jax.data.workers import Workers
from bert_jax.errors import UserError, optional_package
from bert_jax.files import GET_AGAIN

_CHUNK = 1 << 16  # bytes of XML at a time
_LONGEST_PAGE = 1 << 22  # characters of its wikitext; MediaWiki allows 2 MiB
_GROUP = 1 << 18  # characters of wikitext that are converted together
_REMEDY = "use a dump of pages, such as enwiki-latest-pages-articles.xml.bz2"
_PAGE_FIELDS = ("title", "ns", "id", "text", "model")
_SKIPPED_NAMESPACES = ("6", "14")  # of files and categories: links to them are not shown as text


class _Article(NamedTuple):
    id: str
    title: str
    wikitext: str


class _Group(NamedTuple):
    """Articles of one wiki that are converted together."""

    skipped_namespaces: tuple[str, ...]  # the names of `_SKIPPED_NAMESPACES` there
    articles: list[_Article]


def read_wikipedia(files: Iterable[SourceFile], argument: str, bad: BadRecords, workers: int = 1) -> Iterator[Document]:
    """Yields the articles of dumps: the title, then paragraphs. Skips redirects and pages that are no articles.

    The id of a document is the name of the wiki and the number of the page there, which are the same in all its dumps.

    Args:
      files: dumps; they may be compressed.
      argument: the pattern that matched them, for messages.
      bad: is not used: a page that cannot be parsed is an empty document, and damaged XML an error.
      workers: processes that convert the markup.

    Raises:
      UserError: mwparserfromhell is not installed, or as `read_documents`.
    """
    optional_package("mwparserfromhell", f"wikipedia-xml:{argument}", "wikipedia")  # to fail before anything is read
    groups = (group for file in files for group in _groups(file))
    with Workers(workers) as pool:
        for documents in pool.in_order(_converted, groups):
            yield from documents


def _groups(file: SourceFile) -> Iterator[_Group]:
    """Yields the articles of a dump."""
    reader, articles, size, is_ended = _Reader(file), list[_Article](), 0, False
    with open_file(file.path) as opened, decompressed(file.path, opened) as stream:
        while not is_ended:
            file.report(opened.tell())
            try:
                chunk = stream.read(_CHUNK)
            except DAMAGES as error:
                raise UserError(f"{file.path}: truncated or damaged ({error}); {GET_AGAIN}") from None
            is_ended = not chunk
            for article in reader.feed(chunk):
                articles.append(article)
                size += len(article.wikitext)
                if size >= _GROUP:
                    yield _Group(tuple(reader.skipped_namespaces), articles)
                    articles, size = [], 0
    yield _Group(tuple(reader.skipped_namespaces), articles)


def _converted(group: _Group) -> list[Document]:
    """Returns the articles as documents; those without text are empty."""
    converter = Converter(group.skipped_namespaces)
    texts = [converter.text(article.wikitext) for article in group.articles]
    return [
        Document(article.id, f"{article.title}\n{text}" if text else "")
        for article, text in zip(group.articles, texts, strict=True)
    ]


class _Reader:
    """Reads pages from pieces of XML."""

    def __init__(self, file: SourceFile):
        self.skipped_namespaces = list[str]()  # their names in the language of the wiki
        self._wiki = file.name  # its name, if there is one: enwiki, dewiki ...
        self._path = file.path
        self._open = list[str]()  # names of the open elements
        self._articles = list[_Article]()  # that have ended
        self._page = dict[str, str]()
        self._text, self._length, self._is_kept, self._is_redirect = list[str](), 0, False, False
        self._parser = expat.ParserCreate("UTF-8")
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.StartDoctypeDeclHandler = self._doctype  # dumps have none, and entities of its own are a risk

    def feed(self, chunk: bytes) -> list[_Article]:
        """Returns the articles that end in a piece of XML; b"" is the end. Raises UserError if it is no XML of a dump."""
        self._articles = []
        try:
            self._parser.Parse(chunk, not chunk)
        except expat.ExpatError as error:
            is_early = not chunk
            problem = "ends early" if is_early else "not XML, or damaged"
            raise UserError(f"{self._path}: {problem} ({error}); {GET_AGAIN if is_early else _REMEDY}") from None
        return self._articles

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
                self._wiki = text or self._wiki
            elif name == "namespace":
                self.skipped_namespaces.append(text)
            else:
                self._page[name] = text
        self._is_kept = False
        if name == "page" and self._is_article():
            page = self._page
            self._articles.append(_Article(f"{self._wiki}:{page['id']}", page["title"], page["text"]))

    def _is_article(self) -> bool:
        page = self._page
        is_wikitext = page.get("model", "wikitext") == "wikitext"
        is_whole = all(page.get(field) for field in ("id", "title", "text"))
        return not self._is_redirect and page.get("ns", "0") == "0" and is_wikitext and is_whole

    def _doctype(self, *_: object) -> None:
        raise UserError(f"{self._path}: has a document type declaration, which dumps have not; {_REMEDY}")

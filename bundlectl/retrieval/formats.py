"""One reader per file format: bytes to plain text with sections and, where the format has one, a title.

Reading is a function of the bytes: no clock, no locale, no network. Text is UTF-8, NFC, with LF line ends.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser

from bundlectl.model.errors import MissingExtra, Problem
from bundlectl.retrieval.frontmatter import FrontMatter, parse_front_matter
from bundlectl.retrieval.markdown import Heading, Section, cut_at, headings


class Unreadable(Exception):
    """A file is not what its ending says. ``line`` is 0 where the whole file is meant."""

    def __init__(self, message: str, *, line: int = 0, right: str = "") -> None:
        super().__init__(message)
        self.message, self.line, self.right = message, line, right


class Mislabelled(Exception):
    """The front matter has problems, each with its place."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__()
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Parsed:
    """A file's content. ``labels`` is what the file says of itself (Markdown's front matter only)."""

    text: str
    sections: tuple[Section, ...]
    title: str | None
    labels: FrontMatter


def decode(data: bytes) -> str:
    """Decode UTF-8, drop a byte order mark, bring line ends to LF and characters to NFC.

    Raises:
        Unreadable: the bytes are not UTF-8 text.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Unreadable(f"not UTF-8: {error.reason}", line=line, right="save the file as UTF-8") from error
    if "\x00" in text:
        raise Unreadable("a NUL character", line=text.count("\n", 0, text.index("\x00")) + 1, right="text only")
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))


def read_markdown(data: bytes, file: str) -> Parsed:
    """Read Markdown with optional YAML front matter; offsets count from the end of the front matter.

    Raises:
        Unreadable: it is not UTF-8 text.
        Mislabelled: the front matter has problems.
    """
    whole = decode(data)
    labels, problems = parse_front_matter(whole, file)
    if problems:
        raise Mislabelled(problems)
    text = whole[labels.body :]
    found = headings(text)
    first = next((heading.text for heading in found if heading.level == 1 and heading.text), None)
    return Parsed(text, cut_at(text, found), labels.title or first, labels)


def read_text(data: bytes, file: str) -> Parsed:
    """Read plain text: one section."""
    text = decode(data)
    return Parsed(text, cut_at(text, []), None, FrontMatter(body=0))


# fmt: off
_BLOCKS = frozenset((
    "address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "fieldset", "figcaption",
    "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol",
    "p", "pre", "section", "table", "td", "th", "tr", "ul",
))
# fmt: on
_UNSEEN = frozenset(("script", "style", "template", "noscript", "svg", "head"))
_HEADINGS = {f"h{level}": level for level in range(1, 7)}


class _Page(HTMLParser):
    """Collects what a reader of the page sees, and where its headings stand."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.length = 0
        self.found: list[Heading] = []
        self.title = ""
        self._unseen = 0
        self._in_title = False
        self._pre = 0
        self._heading: tuple[int, int] | None = None  # level, offset

    def _put(self, text: str) -> None:
        self.parts.append(text)
        self.length += len(text)

    def _newline(self) -> None:
        if self.parts and not self.parts[-1].endswith("\n"):
            self._put("\n")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title":
            self._in_title = True
        elif tag in _UNSEEN:
            self._unseen += 1
        elif tag in _BLOCKS and not self._unseen:
            self._newline()
            self._pre += tag == "pre"
            if tag in _HEADINGS:
                self._heading = (_HEADINGS[tag], self.length)

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        elif tag in _UNSEEN:
            self._unseen = max(0, self._unseen - 1)
        elif tag in _BLOCKS and not self._unseen:
            heading, self._heading = (self._heading, None) if tag in _HEADINGS else (None, self._heading)
            self._newline()
            self._pre = max(0, self._pre - (tag == "pre"))
            if heading is not None:
                words = " ".join("".join(self.parts)[heading[1] :].split())
                self.found.append(Heading(heading[0], words, heading[1], self.length))

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._unseen:
            if not self._pre:
                data = re.sub(r"\s+", " ", data)
                if not self.parts or self.parts[-1].endswith(("\n", " ")):
                    data = data.lstrip()
            if data:
                self._put(data)


def read_html(data: bytes, file: str) -> Parsed:
    """Read what an HTML page shows: no scripts, styles or attributes; ``h1`` to ``h6`` are its headings."""
    page = _Page()
    page.feed(decode(data))
    page.close()
    text = "".join(page.parts)
    found = [heading for heading in page.found if heading.text]
    title = " ".join(page.title.split()) or next((h.text for h in found if h.level == 1), None)
    return Parsed(text, cut_at(text, found), title, FrontMatter(body=0))


def read_pdf(data: bytes, file: str) -> Parsed:
    """Read a PDF's text, one section per page (``page 3``); a scan without text has none and is refused.

    Raises:
        Unreadable: it is damaged, encrypted or without text.
        MissingExtra: pypdf is not installed.
    """
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ModuleNotFoundError as error:
        raise MissingExtra("Reading PDF documents", "rag") from error
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted:
            raise Unreadable("an encrypted PDF", right="a copy without a password")
        pages = [page.extract_text() for page in reader.pages]
        title = reader.metadata.title if reader.metadata else None
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        # pypdf lets errors of every kind out of damaged files; each of them means that the file can't be read
        raise Unreadable(f"not a readable PDF: {error}") from error
    text = ""
    found: list[Heading] = []
    for number, page in enumerate(pages, start=1):
        found.append(Heading(1, f"page {number}", len(text), len(text)))
        text += unicodedata.normalize("NFC", page.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", ""))
        text += "\n"
    if not text.strip():
        raise Unreadable("a PDF without text", right="a PDF with a text layer (OCR it first)")
    return Parsed(text, cut_at(text, found), (title or "").strip() or None, FrontMatter(body=0))


READERS: dict[str, Callable[[bytes, str], Parsed]] = {
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".html": read_html,
    ".htm": read_html,
    ".pdf": read_pdf,
    ".txt": read_text,
}
"""File ending to reader. A file with another ending is refused, not guessed at."""

"""The page at `/`: one file, nothing from elsewhere, no markup made from data, usable without a mouse or a screen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "serve_app" / "web" / "index.html"

# Attributes that make a browser fetch or go somewhere.
ADDRESS_ATTRIBUTES = {"src", "srcset", "href", "xlink:href", "action", "formaction", "poster", "data", "background"}
VOID_TAGS = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
ABSOLUTE_URL = re.compile(r"(?:https?|wss?|ftp):\s*//", re.IGNORECASE)
HOST_IN_QUOTES = re.compile(r"""["'`(]\s*//\s*\w""")
MARKUP_FROM_TEXT = re.compile(
    r"\b(?:innerHTML|outerHTML|insertAdjacentHTML|setHTMLUnsafe|srcdoc|createContextualFragment|DOMParser)\b"
    r"|\bdocument\s*\.\s*write|\beval\s*\(|\bnew\s+Function\b"
)


class Page(HTMLParser):
    """Collects what the checks below ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.title = ""
        self.wrapped: set[int] = set()  # places in `elements` of the inputs inside a label
        self.code: dict[str, list[str]] = {"script": [], "style": []}
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "input" and "label" in self._open:
            self.wrapped.add(len(self.elements))
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID_TAGS:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if not self._open:
            return
        if self._open[-1] == "title":
            self.title += data
        elif self._open[-1] in self.code:
            self.code[self._open[-1]].append(data)

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def problems(text: str) -> Iterator[str]:
    """Yield the name of every rule that the page breaks."""
    page = Page(text)
    script, style = "".join(page.code["script"]), "".join(page.code["style"])

    for _, attributes in page.elements:
        for name, value in attributes.items():
            if name.startswith("on"):
                yield "inline handler"
            if name == "style":
                yield "style attribute"
            if name in ADDRESS_ATTRIBUTES and (ABSOLUTE_URL.search(value) or value.strip().startswith("//")):
                yield "foreign address"
            if name in ADDRESS_ATTRIBUTES and value.strip().lower().startswith("javascript:"):
                yield "inline handler"
    if ABSOLUTE_URL.search(script + style) or HOST_IN_QUOTES.search(script + style):
        yield "foreign address"
    if any("src" in attributes for attributes in page.attributes("script")) or "@import" in style:
        yield "second file"
    if any("stylesheet" in attributes.get("rel", "").lower().split() for attributes in page.attributes("link")):
        yield "second file"
    if MARKUP_FROM_TEXT.search(script):
        yield "markup from text"

    if not any(attributes.get("lang") for attributes in page.attributes("html")):
        yield "no lang"
    if not page.title.strip():
        yield "no title"
    if not any("width=device-width" in attributes.get("content", "") for attributes in page.attributes("meta")):
        yield "no viewport"
    labelled = {attributes.get("for") for attributes in page.attributes("label")} - {None}
    files = [i for i, (tag, a) in enumerate(page.elements) if tag == "input" and a.get("type") == "file"]
    if not files:
        yield "no file input"
    for i in files:
        attributes = page.elements[i][1]
        named = "aria-label" in attributes or "aria-labelledby" in attributes
        if not (named or i in page.wrapped or attributes.get("id") in labelled):
            yield "file input without label"
        if "hidden" in attributes or attributes.get("tabindex", "0").startswith("-"):
            yield "file input out of keyboard reach"
    if not any(attributes.get("aria-live") == "polite" for _, attributes in page.elements):
        yield "no live region"
    if not any(attributes.get("role") == "alert" for _, attributes in page.elements):
        yield "no alert"
    if not any("aria-busy" in attributes for _, attributes in page.elements):
        yield "no busy state"
    if any("alt" not in attributes for attributes in page.attributes("img")):
        yield "picture without alt"
    for feature in ("prefers-color-scheme: dark", "prefers-reduced-motion: reduce", ":focus-visible"):
        if feature not in style:
            yield f"no {feature}"


def test_page_keeps_every_rule() -> None:
    assert list(problems(PAGE.read_text(encoding="utf-8"))) == []


def test_ids_are_unique_and_those_used_exist() -> None:
    page = Page(PAGE.read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"""\$\("([\w-]+)"\)""", "".join(page.code["script"])))
    for _, attributes in page.elements:
        used |= {attributes[name] for name in ("for", "aria-labelledby", "aria-describedby") if name in attributes}
    assert used
    assert used <= set(ids)


@pytest.mark.parametrize(
    ("pattern", "replacement", "problem"),
    [
        ("</main>", '<img alt="" src="https://example.org/a.png"></main>', "foreign address"),
        ("</main>", '<a href="//example.org/">a</a></main>', "foreign address"),
        ("</style>", "body { background: url(//example.org/a.png) }</style>", "foreign address"),
        ("</script>", 'fetch("http://example.org/");</script>', "foreign address"),
        ("</script>", 'fetch("//example.org/");</script>', "foreign address"),
        ("</main>", '<script src="app.js"></script></main>', "second file"),
        ("</head>", '<link rel="stylesheet" href="app.css"></head>', "second file"),
        ("<style>", '<style>@import "app.css";', "second file"),
        ("<main>", '<main onclick="go()">', "inline handler"),
        ("</main>", '<a href="javascript:go()">a</a></main>', "inline handler"),
        ("<main>", '<main style="color: red">', "style attribute"),
        ("</script>", "document.body.innerHTML = answer;</script>", "markup from text"),
        ("</script>", "document.body.insertAdjacentHTML('beforeend', answer);</script>", "markup from text"),
        (r' lang="[^"]*"', "", "no lang"),
        (r"<title>.*?</title>", "<title> </title>", "no title"),
        (r'<meta name="viewport".*?>', "", "no viewport"),
        (r'<input[^>]*type="file"[^>]*>', "", "no file input"),
        (r"<label\b[^>]*>(.*?)</label>", r"<div>\1</div>", "file input without label"),
        (r'type="file"', 'type="file" tabindex="-1"', "file input out of keyboard reach"),
        (r' aria-live="[^"]*"', "", "no live region"),
        (r' role="alert"', "", "no alert"),
        (r' aria-busy="[^"]*"', "", "no busy state"),
        (r' alt="[^"]*"', "", "picture without alt"),
        (r"prefers-color-scheme: dark", "prefers-contrast: more", "no prefers-color-scheme: dark"),
        (r"prefers-reduced-motion: reduce", "prefers-contrast: more", "no prefers-reduced-motion: reduce"),
        (r":focus-visible", ":hover", "no :focus-visible"),
    ],
)
def test_a_broken_rule_is_found(pattern: str, replacement: str, problem: str) -> None:
    broken, changes = re.subn(pattern, replacement, PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert changes > 0
    assert problem in list(problems(broken))

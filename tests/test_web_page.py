"""The page at `/`: nothing from elsewhere, no markup made from data, usable without a mouse or a screen."""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WEB = ROOT / "serve_app" / "web"
PAGE, STYLE, MAIN = "index.html", "style.css", "main.js"
WORDS = ("words.en.js", "words.zh.js")

# Attributes that make a browser fetch or go somewhere.
ADDRESS_ATTRIBUTES = {"src", "srcset", "href", "xlink:href", "action", "formaction", "poster", "data", "background"}
VOID_TAGS = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
SVG_NAMESPACE = "http://www.w3.org/2000/svg"  # a name, never fetched
ABSOLUTE_URL = re.compile(r"(?:https?|wss?|ftp):\s*//", re.IGNORECASE)
HOST_IN_QUOTES = re.compile(r"""["'`(]\s*//\s*\w""")
MARKUP_FROM_TEXT = re.compile(
    r"\b(?:innerHTML|outerHTML|insertAdjacentHTML|setHTMLUnsafe|srcdoc|createContextualFragment|DOMParser)\b"
    r"|\bdocument\s*\.\s*write|\beval\s*\(|\bnew\s+Function\b"
)
IMPORT = re.compile(r"""^import (?:[^"]*? from )?"\./([\w.]+)";$""", re.MULTILINE)


class Page(HTMLParser):
    """Collects what the checks below ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, str] = {}  # key of the words -> what stands in the file
        self.title = ""
        self.inline = ""  # the text inside script and style elements
        self.wrapped: set[int] = set()  # places in `elements` of the inputs inside a label
        self._open: list[tuple[str, dict[str, str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag == "input" and any(name == "label" for name, _ in self._open):
            self.wrapped.add(len(self.elements))
        self.elements.append((tag, attributes))
        if tag not in VOID_TAGS:
            self._open.append((tag, attributes))

    def handle_endtag(self, tag: str) -> None:
        if any(name == tag for name, _ in self._open):
            while self._open.pop()[0] != tag:
                pass

    def handle_data(self, data: str) -> None:
        if not self._open:
            return
        tag, attributes = self._open[-1]
        if tag == "title":
            self.title += data
        elif tag in {"script", "style"}:
            self.inline += data
        elif "data-t" in attributes:
            self.texts[attributes["data-t"]] = data

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def files() -> dict[str, str]:
    """The text of each file of the page, by name."""
    return {
        path.name: path.read_text(encoding="utf-8") for path in WEB.iterdir() if path.suffix in {".html", ".css", ".js"}
    }


def scripts(page_files: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in page_files.items() if name.endswith(".js")}


def words(page_files: Mapping[str, str], name: str) -> dict[str, str]:
    """A language's words: the file is one JSON object behind `export default`."""
    loaded: dict[str, str] = json.loads(page_files[name].partition("export default ")[2].rstrip().removesuffix(";"))
    return loaded


def problems(page_files: Mapping[str, str]) -> Iterator[str]:
    """Yield the name of every rule that the files break."""
    page = Page(page_files[PAGE])
    code = "".join(scripts(page_files).values()).replace(SVG_NAMESPACE, "")
    yield from _markup_problems(page)
    yield from _code_problems(code, page_files[STYLE])
    yield from _reader_problems(page, page_files[STYLE])
    yield from _word_problems(page, page_files)


def _markup_problems(page: Page) -> Iterator[str]:
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
    if page.inline.strip() or page.attributes("style"):
        yield "inline code"


def _code_problems(code: str, style: str) -> Iterator[str]:
    if ABSOLUTE_URL.search(code + style) or HOST_IN_QUOTES.search(code + style):
        yield "foreign address"
    if "@import" in style or "url(" in style:
        yield "file from the style sheet"
    if MARKUP_FROM_TEXT.search(code):
        yield "markup from text"
    if re.search(r"""setAttribute\(\s*["'](?:style|on\w+)["']""", code):
        yield "style attribute"


def _reader_problems(page: Page, style: str) -> Iterator[str]:
    if not any(attributes.get("lang") for attributes in page.attributes("html")):
        yield "no lang"
    if not page.title.strip():
        yield "no title"
    if not any("width=device-width" in attributes.get("content", "") for attributes in page.attributes("meta")):
        yield "no viewport"
    yield from _file_input_problems(page)
    if not any(attributes.get("aria-live") == "polite" for _, attributes in page.elements):
        yield "no live region"
    if not any(attributes.get("role") == "alert" for _, attributes in page.elements):
        yield "no alert"
    if not any("aria-busy" in attributes for _, attributes in page.elements):
        yield "no busy state"
    for feature in ("prefers-color-scheme: dark", "prefers-reduced-motion: reduce", ":focus-visible"):
        if feature not in style:
            yield f"no {feature}"


def _file_input_problems(page: Page) -> Iterator[str]:
    labelled = {attributes.get("for") for attributes in page.attributes("label")} - {None}
    inputs = [i for i, (tag, a) in enumerate(page.elements) if tag == "input" and a.get("type") == "file"]
    reachable = [i for i in inputs if "hidden" not in page.elements[i][1]]
    if not reachable:
        yield "no file input in keyboard reach"
    for i in inputs:
        attributes = page.elements[i][1]
        named = "aria-label" in attributes or "aria-labelledby" in attributes
        if not (named or i in page.wrapped or attributes.get("id") in labelled):
            yield "file input without label"
        if attributes.get("tabindex", "0").startswith("-"):
            yield "no file input in keyboard reach"


def _word_problems(page: Page, page_files: Mapping[str, str]) -> Iterator[str]:
    english, chinese = (words(page_files, name) for name in WORDS)
    if list(english) != list(chinese):
        yield "languages differ"
    for key in english.keys() & chinese.keys():
        if _places(english[key]) != _places(chinese[key]):
            yield "languages differ"
    if any(not re.search(r"[\u3000-\u9fff\uff00-\uffef]", text) for text in chinese.values()):
        yield "not translated"
    if any(english.get(key) != text for key, text in page.texts.items()):
        yield "page and words differ"
    literal, patterns = _used_keys(page, page_files, {key.split(".")[0] for key in english})
    if literal - english.keys() or any(not any(p.fullmatch(key) for key in english) for p in patterns):
        yield "unknown word"
    if any(key not in literal and not any(p.fullmatch(key) for p in patterns) for key in english):
        yield "unused word"


def _places(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", text)) - {"n"}  # English says "1" where n is one


def _used_keys(page: Page, page_files: Mapping[str, str], spaces: set[str]) -> tuple[set[str], list[re.Pattern[str]]]:
    """Keys that stand in the page or the scripts, and patterns of those that scripts put together."""
    used = {a[name] for _, a in page.elements for name in ("data-t", "data-t-label") if name in a}
    text = "".join(source for name, source in scripts(page_files).items() if name not in WORDS)
    used |= {
        key for key in re.findall(r'"([a-z]+(?:[.-][a-z]+)*)"', text) if "." in key and key.split(".")[0] in spaces
    }
    used |= set(re.findall(r'\bt\("([\w.-]+)"', text))
    made = [re.sub(r"\$\{[^}]*\}", "\0", key) for key in re.findall(r"\bt\(`([\w.${}-]+)`", text)]
    return used, [re.compile(re.escape(key).replace("\0", r"[\w-]+")) for key in made]


def test_page_keeps_every_rule() -> None:
    assert list(problems(files())) == []


def test_ids_are_unique_and_those_used_exist() -> None:
    page = Page(files()[PAGE])
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    code = "".join(scripts(files()).values())
    used = set(re.findall(r"""\$\("([\w-]+)"\)""", code))
    for _, attributes in page.elements:
        for name in ("for", "aria-labelledby", "aria-describedby", "aria-controls"):
            used |= {attributes[name]} if name in attributes else set()
    assert len(used) > 20
    assert used <= set(ids)
    for made in re.findall(r"\$\(`([\w-]+)\$\{\w+\}`\)", code):
        assert sum(one.startswith(made) for one in ids) == 2  # a tab and a panel for each of two


def test_every_file_is_reached_from_the_page_and_is_in_the_package() -> None:
    page_files = files()
    page = Page(page_files[PAGE])
    first = {a["src"] for a in page.attributes("script")} | {
        a["href"] for a in page.attributes("link") if a["rel"] == "stylesheet"
    }
    assert first == {f"static/{STYLE}", f"static/{MAIN}"}
    reached, todo = {PAGE, STYLE}, [MAIN]
    while todo:
        name = todo.pop()
        reached.add(name)
        lines = [line for line in page_files[name].splitlines() if line.startswith("import ")]
        imported = IMPORT.findall(page_files[name])
        assert len(imported) == len(lines), name
        todo += [one for one in imported if one not in reached]
    assert reached == set(page_files)
    # Named in the page, modules come at once and not one after the other.
    preloaded = {a["href"] for a in page.attributes("link") if a["rel"] == "modulepreload"}
    assert preloaded == {f"static/{name}" for name in scripts(page_files)} - first
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["serve_app"]
    assert [name for name in reached if not any(fnmatch.fnmatch(f"web/{name}", pattern) for pattern in packaged)] == []


def changed(name: str, pattern: str, replacement: str) -> dict[str, str]:
    page_files = files()
    page_files[name], changes = re.subn(pattern, replacement, page_files[name], flags=re.DOTALL)
    assert changes > 0
    return page_files


@pytest.mark.parametrize(
    ("name", "pattern", "replacement", "problem"),
    [
        (PAGE, "</main>", '<img alt="" src="https://example.org/a.png"></main>', "foreign address"),
        (PAGE, "</main>", '<a href="//example.org/">a</a></main>', "foreign address"),
        (STYLE, r"\Z", "body { background: URL(//example.org/a.png) }", "foreign address"),
        (STYLE, r"\Z", "body { background: url(a.png) }", "file from the style sheet"),
        (STYLE, r"\A", '@import "app.css";', "file from the style sheet"),
        (MAIN, r"\Z", 'fetch("http://example.org/");', "foreign address"),
        (MAIN, r"\Z", 'fetch("//example.org/");', "foreign address"),
        (PAGE, "</main>", "<script>go()</script></main>", "inline code"),
        (PAGE, "</head>", "<style>p { color: red }</style></head>", "inline code"),
        (PAGE, "<main>", '<main onclick="go()">', "inline handler"),
        (PAGE, "</main>", '<a href="javascript:go()">a</a></main>', "inline handler"),
        (PAGE, "<main>", '<main style="color: red">', "style attribute"),
        (MAIN, r"\Z", 'node.setAttribute("style", "color: red");', "style attribute"),
        (MAIN, r"\Z", "document.body.innerHTML = answer;", "markup from text"),
        (MAIN, r"\Z", "document.body.insertAdjacentHTML('beforeend', answer);", "markup from text"),
        (PAGE, r' lang="[^"]*"', "", "no lang"),
        (PAGE, r"<title>.*?</title>", "<title> </title>", "no title"),
        (PAGE, r'<meta name="viewport".*?>', "", "no viewport"),
        (PAGE, r'<input[^>]*type="file"[^>]*multiple>', "", "no file input in keyboard reach"),
        (PAGE, r'type="file"', 'type="file" tabindex="-1"', "no file input in keyboard reach"),
        (PAGE, r'<label class="button"(.*?)</label>', r"<div\1</div>", "file input without label"),
        (PAGE, r' aria-live="[^"]*"', "", "no live region"),
        (PAGE, r' role="alert"', "", "no alert"),
        (PAGE, r' aria-busy="[^"]*"', "", "no busy state"),
        (STYLE, r"prefers-color-scheme: dark", "prefers-contrast: more", "no prefers-color-scheme: dark"),
        (STYLE, r"prefers-reduced-motion: reduce", "prefers-contrast: more", "no prefers-reduced-motion: reduce"),
        (STYLE, r":focus-visible", ":hover", "no :focus-visible"),
        (WORDS[1], r'\n  "tab.live": [^\n]*', "", "languages differ"),
        (WORDS[1], r"\{share\}", "", "languages differ"),
        (WORDS[1], r'("tab.live": )"[^"]*"', r'\1"Live"', "not translated"),
        (PAGE, ">Choose pictures<", ">Choose files<", "page and words differ"),
        (PAGE, r'data-t="tab\.live"', 'data-t="tab.lives"', "unknown word"),
        (MAIN, r"\Z", 't("nothing");', "unknown word"),
        ("card.js", r"t\(`stage\.\$\{name\}`\)", "t(`steps.${name}`)", "unknown word"),
        ("predict.js", r"\Z", 'say(node, "problem.none");', "unknown word"),
        (PAGE, r' data-t="intake\.hint"', "", "unused word"),
    ],
)
def test_a_broken_rule_is_found(name: str, pattern: str, replacement: str, problem: str) -> None:
    assert problem in list(problems(changed(name, pattern, replacement)))

"""The readable page: whole, without anything from elsewhere, and safe with whatever stands in the document."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shlex
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from PIL import Image

from serve_app.ingress import create_app
from serve_app.openapi import Json, Served, document, page
from serve_app.openapi.page import operations
from serve_app.settings import LimitSettings
from tests.openapi_helpers import FakeService, served_document

VOID = {"meta", "link", "wbr"}
ADDRESS = "http://localhost:8000"


class Reader(HTMLParser):
    """What of a page the tests ask about; fails where elements do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.headings: list[int] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if re.fullmatch(r"h\d", tag) and "nav" not in self._open:
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def values(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]


def written(whole: Json | None = None) -> str:
    return page(whole or served_document(), ADDRESS)


def commands(text: str) -> list[str]:
    blocks = re.findall(r"<pre><code>(curl .*?)</code></pre>", text, re.DOTALL)
    return [unescape(line) for block in blocks for line in block.splitlines()]


def test_every_operation_schema_and_error_is_on_it() -> None:
    whole = served_document()
    ids = Reader(written()).values("id")
    assert len(ids) == len(set(ids))
    assert {one["operationId"] for _, _, one in operations(whole)} <= set(ids)
    assert {f"schema-{name}" for name in whole["components"]["schemas"]} <= set(ids)
    assert "<code>deadline_exceeded</code>" in written()


def test_links_lead_somewhere() -> None:
    reader = Reader(written())
    inside = {link[1:] for link in reader.values("href") if link.startswith("#")}
    assert inside
    assert inside <= set(reader.values("id"))


def test_nothing_comes_from_elsewhere_and_nothing_runs() -> None:
    reader = Reader(written())
    assert {link for link in reader.values("href") if not link.startswith("#")} == {"data:,", "openapi.json"}
    assert {"script", "img", "iframe", "form", "base"}.isdisjoint(tag for tag, _ in reader.elements)
    names = {name for _, attributes in reader.elements for name in attributes}
    assert not {name for name in names if name.startswith("on")} | names & {"src", "style", "srcset", "action"}
    assert "@import" not in written()
    assert "url(" not in written()


def test_it_has_what_readers_without_a_mouse_or_a_screen_need() -> None:
    text = written()
    reader = Reader(text)
    assert reader.headings[0] == 1
    steps = zip(reader.headings, reader.headings[1:], strict=False)
    assert all(after <= before + 1 for before, after in steps), "no level of headings is left out"
    assert {"header", "nav", "main"} <= {tag for tag, _ in reader.elements}
    for needed in ('lang="en"', "width=device-width", "prefers-color-scheme: dark", ":focus-visible"):
        assert needed in text


def test_markup_in_the_document_stays_text() -> None:
    evil = '<script>alert("1")</script>'
    whole = document(Served((evil,), 5, LimitSettings()))
    text = written({**whole, "info": {**whole["info"], "title": evil, "description": evil}})
    assert "<script" not in text
    assert "&lt;script&gt;" in text


async def sent(command: str, http: httpx.AsyncClient, file: bytes) -> httpx.Response:
    """What curl would send."""
    words = shlex.split(command)
    url, method, parts, headers = words[-1].removeprefix(ADDRESS), None, {}, {}
    options: Any = iter(words[1:-1])
    for option in options:
        value = next(options)
        if option == "-X":
            method = value
        elif option == "-H":
            name, _, said = value.partition(": ")
            headers[name] = said
        elif option == "-F":
            parts = {"files": {value.partition("=")[0]: ("photo.jpg", file)}}
        else:
            body = {"--json": value.encode(), "--data-binary": file}[option]
            parts = {"content": body}
            headers |= {"content-type": "application/json"} if option == "--json" else {}
    return await http.request(method or ("POST" if parts else "GET"), url, headers=headers, **parts)


async def test_commands_work_as_they_are() -> None:
    picture = io.BytesIO()
    Image.new("RGB", (6, 6)).save(picture, "PNG")
    refusing = [one for _, _, one in operations(served_document()) if "200" not in one["responses"]]
    statuses: Counter[int] = Counter()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(FakeService())), base_url=ADDRESS) as http:
        for line in commands(written()):
            answer = await sent(line, http, picture.getvalue())
            statuses[answer.status_code] += 1
            assert answer.status_code in (200, 501, 503), (line, answer.text)
    assert statuses[200] > 30
    # Nothing exports metrics here; and what is always refused is described as such.
    assert (statuses[503], statuses[501]) == (1, len(refusing))


async def test_its_policy_allows_its_own_style_and_nothing_else() -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(FakeService())), base_url=ADDRESS) as http:
        answer = await http.get("/docs")
    policy = answer.headers["content-security-policy"]
    [style] = re.findall("<style>(.*?)</style>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; ")
    assert "unsafe" not in policy
    assert "script-src" not in policy


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("pictures.example:8443", "http://pictures.example:8443/predict"),
        ("[::1]:8000", "http://[::1]:8000/predict"),
        ("x;rm -rf ~", "http://localhost:8000/predict"),
        ("$(id)", "http://localhost:8000/predict"),
        ("x'`id`", "http://localhost:8000/predict"),
    ],
)
async def test_commands_name_the_address_that_was_asked_but_nothing_that_a_shell_would_run(
    host: str, shown: str
) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(FakeService())), base_url=ADDRESS) as http:
        text = (await http.get("/docs", headers={"host": host})).text
    assert shlex.split(commands(text)[0]) == ["curl", "--data-binary", "@photo.jpg", shown]


def test_it_is_small() -> None:
    assert len(written()) < 150_000

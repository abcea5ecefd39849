"""The document as one HTML page, made here: no script, no second file, and a few kilobytes.

The usual renderers are a megabyte of script that draws the page in the browser. Swagger UI sets styles from script,
which a strict Content-Security-Policy refuses (https://github.com/swagger-api/swagger-ui/issues/10655), and packages
that bring one of them for offline use are tied to FastAPI. This description is short, and is only to be read.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from html import escape
from importlib import resources
from typing import Any

from serve_app.openapi.parts import CURL_HEADERS, JSON_TYPE, Json

METHODS = ("get", "post", "put", "delete", "options", "head", "patch")


def page(document: Json, address: str) -> str:
    """HTML of a document.

    Args:
        document: from `document`.
        address: where the reader found the service, for commands to copy: `http://host:port/prefix`, no slash at its
            end.
    """
    tags = [tag["name"] for tag in document["tags"]]
    parts = {
        "header": _header(document),
        "nav": "".join(_group(tag, document) for tag in tags) + _schema_links(document),
        "main": "".join(_section(tag, document, address) for tag in document["tags"]) + _schemas(document),
    }
    template = resources.files("serve_app.openapi").joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"<!--(\w+)-->", lambda place: parts[place[1]], template)


def operations(document: Json, tag: str | None = None) -> Iterator[tuple[str, str, Json]]:
    """Path, method and operation, of one tag or of all."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item and tag in (None, item[method]["tags"][0]):
                yield path, method, item[method]


def _header(document: Json) -> str:
    info = document["info"]
    return (
        f"<h1>{escape(info['title'])}: HTTP API</h1>"
        f'<p class="soft">{escape(info["summary"])} Version {escape(info["version"])}, OpenAPI {document["openapi"]}: '
        f'<a href="openapi.json">openapi.json</a></p>{_prose(info["description"])}'
    )


def _group(tag: str, document: Json) -> str:
    listed = "".join(
        f'<li><a href="#{one["operationId"]}">{_method(method)} <span>{_breakable(path)}</span></a></li>'
        for path, method, one in operations(document, tag)
    )
    title = f'<a href="#{_anchor(tag)}">{escape(tag)}</a>'
    return f"<h2>{title}</h2>" + (f"<ul>{listed}</ul>" if listed else "")


def _breakable(path: str) -> str:
    return escape(path).replace("/", "/<wbr>")


def _anchor(tag: str) -> str:
    return "tag-" + re.sub(r"\W+", "-", tag).lower()


def _method(method: str) -> str:
    return f'<span class="method {method}">{method.upper()}</span>'


def _section(tag: Json, document: Json, address: str) -> str:
    articles = (_article(path, method, one, address) for path, method, one in operations(document, tag["name"]))
    title = f'<h2 id="{_anchor(tag["name"])}">{escape(tag["name"])}</h2>'
    return f"<section>{title}{_prose(tag['description'])}{''.join(articles)}</section>"


def _article(path: str, method: str, one: Json, address: str) -> str:
    return (
        f'<article id="{one["operationId"]}"><h3>{_method(method)} <code>{escape(path)}</code></h3>'
        f"<p>{_inline(one['summary'])}.</p>{_prose(one.get('description', ''))}"
        f"{_commands(path, method, one, address)}{_parameters(one)}{_body(one)}{_responses(one)}</article>"
    )


def _commands(path: str, method: str, one: Json, address: str) -> str:
    for declared in one.get("parameters", []):
        if declared["in"] == "path":
            path = path.replace("{" + declared["name"] + "}", str(declared["example"]))
    lines = dict.fromkeys(" ".join(["curl", *how, shlex.quote(address + path)]) for how in _sendings(method, one))
    return f"<pre><code>{escape(chr(10).join(lines))}</code></pre>"


def _sendings(method: str, one: Json) -> Iterator[list[str]]:
    """curl's options for every way to send a body."""
    if "requestBody" not in one:
        yield [] if method == "get" else ["-X", method.upper()]
        return
    verb = ["-X", method.upper()] if method != "post" else []
    for kind, body in one["requestBody"]["content"].items():
        headers = [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in body.get(CURL_HEADERS, {}).items()]
        yield [*verb, *headers, *_data(kind, body)]


def _data(kind: str, body: Json) -> list[str]:
    if kind == JSON_TYPE:
        example = next(iter(body["examples"].values()))
        return ["--json", shlex.quote(json.dumps(example["value"]))]
    if kind == "multipart/form-data":
        return ["-F", f"{next(iter(body['schema']['properties']))}=@photo.jpg"]
    return ["--data-binary", "@photo.jpg"]


def _parameters(one: Json) -> str:
    entries = "".join(
        f"<div><dt><code>{escape(each['name'])}</code> "
        f'<span class="soft">{each["in"]}{", required" if each["required"] else ""}, {_kind(each["schema"])}</span>'
        f"</dt><dd>{_inline(each['description'])}</dd></div>"
        for each in one.get("parameters", [])
    )
    return f"<h4>Parameters</h4><dl>{entries}</dl>" if entries else ""


def _body(one: Json) -> str:
    body = one.get("requestBody")
    if body is None:
        return ""
    entries = "".join(
        f"<div><dt><code>{escape(kind)}</code></dt><dd>{_kind(part['schema'])}</dd></div>"
        for kind, part in body["content"].items()
    )
    return f"<h4>Body</h4>{_prose(body.get('description', ''))}<dl>{entries}</dl>"


def _responses(one: Json) -> str:
    entries = "".join(
        f"<div><dt>{status}</dt><dd>{_inline(each['description'])}{_contents(each, examples=status < '400')}</dd></div>"
        for status, each in one["responses"].items()
    )
    return f"<h4>Answers</h4><dl>{entries}</dl>"


def _contents(response: Json, *, examples: bool) -> str:
    return "".join(
        f' <span class="soft">{escape(kind)}: {_kind(part["schema"])}</span>'
        f"{_examples(part.get('examples', {})) if examples else ''}"
        for kind, part in response.get("content", {}).items()
    )


def _examples(examples: Json) -> str:
    if not examples:
        return ""
    blocks = "".join(f"<pre><code>{escape(_shown(example['value']))}</code></pre>" for example in examples.values())
    return f"<details><summary>{'Example' if len(examples) == 1 else 'Examples'}</summary>{blocks}</details>"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


def _schema_links(document: Json) -> str:
    names = document["components"]["schemas"]
    lines = "".join(f'<li><a href="#schema-{name}">{name}</a></li>' for name in names)
    return f'<h2><a href="#bodies">Bodies</a></h2><ul>{lines}</ul>'


def _schemas(document: Json) -> str:
    schemas = document["components"]["schemas"].items()
    articles = "".join(_schema(name, schema) for name, schema in schemas)
    return f'<section><h2 id="bodies">Bodies</h2>{articles}</section>'


def _schema(name: str, schema: Json) -> str:
    required = schema.get("required", [])
    rows = "".join(
        f"<div><dt><code>{escape(field)}</code> "
        f'<span class="soft">{_kind(part)}{"" if field in required else ", may be left out"}</span></dt>'
        f"<dd>{_inline(part.get('description', ''))}</dd></div>"
        for field, part in schema.get("properties", {}).items()
    )
    shape = f"<dl>{rows}</dl>" if rows else f"<p>{_kind(schema)}</p>"
    return f'<article id="schema-{name}"><h3>{name}</h3>{_prose(schema.get("description", ""))}{shape}</article>'


def _kind(schema: Json) -> str:
    """A JSON Schema in words, with links to named ones."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#schema-{name}">{name}</a>'
    for joined in ("anyOf", "oneOf"):
        if joined in schema:
            return " or ".join(_kind(one) for one in schema[joined])
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " | ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    if schema.get("type") == "array":
        return f"array of {_kind(schema.get('items', {}))}{_bounds(schema)}"
    if "properties" in schema:
        fields = (f"<code>{escape(name)}</code>: {_kind(part)}" for name, part in schema["properties"].items())
        return f"object with {', '.join(fields)}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'])}"
    kind = "file" if schema.get("format") == "binary" else schema.get("type", "any value")
    return f"{kind}{_bounds(schema)}"


def _bounds(schema: Json) -> str:
    named = (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"), ("maxItems", "at most"))
    said = [f"{words} {schema[key]:,}" for key, words in named if key in schema]
    return "".join(f", {part}" for part in said)


def _prose(text: str) -> str:
    """Paragraphs and tables of the Markdown that descriptions are written in."""
    return "".join(_block(block) for block in text.split("\n\n") if block)


def _block(block: str) -> str:
    if not block.startswith("|"):
        return f"<p>{_inline(block)}</p>"
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
    return f"<table><thead><tr>{_cells(head, 'col')}</tr></thead><tbody>{''.join(map(_row, rows))}</tbody></table>"


def _row(cells: list[str]) -> str:
    return f"<tr>{_cells(cells[:1], 'row')}{''.join(f'<td>{_inline(cell)}</td>' for cell in cells[1:])}</tr>"


def _cells(cells: Iterable[str], scope: str) -> str:
    return "".join(f'<th scope="{scope}">{_inline(cell)}</th>' for cell in cells)


def _inline(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text, quote=False))

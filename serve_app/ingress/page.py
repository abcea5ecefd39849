"""The page at `/` and its files under `/static`: read once, and never anything but these files."""

from __future__ import annotations

import hashlib
import mimetypes
from dataclasses import dataclass
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

from serve_app.errors import UnknownRoute

PAGE = "index.html"
SERVED = (".html", ".css", ".js", ".svg", ".png", ".json")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Under which exactly these files run, and talk to us only."""


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    media_type: str
    tag: str


class Page:
    """Routes of the files of `serve_app.web`."""

    def __init__(self) -> None:
        self._files = {
            entry.name: _read(entry.name, entry.read_bytes())
            for entry in resources.files("serve_app.web").iterdir()
            if entry.name.endswith(SERVED)
        }

    async def page(self, request: Request) -> Response:
        return _answer(request, self._files[PAGE])

    async def static(self, request: Request) -> Response:
        """One file by its name, which is looked up, not opened."""
        file = self._files.get(request.path_params["name"])
        if file is None:
            raise UnknownRoute(f"nothing at {request.url.path}; the page is at /")
        return _answer(request, file)


def _read(name: str, body: bytes) -> _File:
    media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return _File(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:24]}"')


def _answer(request: Request, file: _File) -> Response:
    # Asked for again each time, and answered with 304 unless there is a new one: no page is put together of two.
    headers = {
        "cache-control": "no-cache",
        "etag": file.tag,
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.media_type, headers=headers)

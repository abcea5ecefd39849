"""One reader of the page in a real Chromium, and the photographs that are shown to it."""

from __future__ import annotations

import io
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from playwright.sync_api import ConsoleMessage, Page, Request, expect


class Visit:
    """One reader's page and all that went wrong on it."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.problems: list[str] = []
        self.uploads: list[Request] = []
        self._host = urlsplit(address).netloc
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        page.on("request", self._request)
        page.goto(address)
        expect(page.locator("#about")).to_contain_text("efficientnet_lite0")

    def _console(self, message: ConsoleMessage) -> None:
        # Chromium itself notes every answer of 400 and above; a picture that is refused is one, and nothing besides.
        refusal = "/predict" in message.location.get("url", "") and message.text.startswith("Failed to load resource")
        if message.type in {"error", "warning"} and not refusal:
            self.problems.append(f"console: {message.text}")

    def _request(self, request: Request) -> None:
        url = urlsplit(request.url)
        if url.scheme not in {"blob", "data"} and url.netloc != self._host:
            self.problems.append(f"request to {request.url}")
        if url.path == "/predict":
            self.uploads.append(request)

    def choose(self, *pictures: tuple[str, bytes]) -> None:
        files: Any = [{"name": name, "mimeType": "image/jpeg", "buffer": body} for name, body in pictures]
        self.page.set_input_files("#file", files)

    def card(self, name: str) -> Any:
        return self.page.locator(".picture", has=self.page.get_by_role("heading", name=name, exact=True))

    def best(self, name: str) -> str:
        return str(self.card(name).locator(".answers .label").first.inner_text())

    def sent_bytes(self) -> list[int]:
        return [int(upload.all_headers()["content-length"]) for upload in self.uploads]


def jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, **options)
    return file.getvalue()


def enlarged(body: bytes, size: tuple[int, int]) -> Image.Image:
    return Image.open(io.BytesIO(body)).convert("RGB").resize(size, Image.Resampling.BICUBIC)


def detailed(body: bytes, size: tuple[int, int]) -> Image.Image:
    """With grain: what is only enlarged is smoother than photographs are, and too easily made small."""
    middle = np.asarray(enlarged(body, (size[0] // 4, size[1] // 4)), dtype=np.float32)
    grain = np.random.default_rng(0).normal(0, 15, (*middle.shape[:2], 1))
    return Image.fromarray((middle + grain).clip(0, 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)

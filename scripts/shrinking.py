#!/usr/bin/env python
"""What the page's shrinking costs and saves: every picture as a photograph of 3,000 pixels, in full and shrunk.

    .venv/bin/python scripts/shrinking.py --images DIR [--address http://localhost:8000] [--every 3]

Chromium runs the page's own code (static/shrink.js); the running service classifies both. Prints one Markdown row.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from PIL import Image
from playwright.sync_api import Page
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from scripts.browser import chromium
from scripts.pictures import add_images, picture_files

SHORTER_SIDE = 3000
SURE = 0.5
SHRINK = """async ({ text, input }) => {
  const { shrink } = await import(new URL("static/shrink.js", document.baseURI));
  const file = new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], "a.jpg", { type: "image/jpeg" });
  const { blob, ms } = await shrink(file, input);
  const bytes = new Uint8Array(await blob.arrayBuffer());
  return { ms, text: btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join("")) };
}"""


@dataclass(frozen=True, slots=True)
class Compared:
    """One photograph in full and shrunk."""

    full_bytes: int
    shrunk_bytes: int
    shrink_ms: float
    same: bool
    score: float
    score_change: float


def photograph(path: Path) -> bytes:
    """A JPEG of the size that cameras make, from any picture."""
    image = Image.open(path).convert("RGB")
    scale = SHORTER_SIDE / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    file = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
    return file.getvalue()


def compare(page: Page, http: httpx.Client, spec: dict[str, object], full: bytes) -> Compared:
    """Both ways of one photograph."""
    made = page.evaluate(SHRINK, {"text": base64.b64encode(full).decode(), "input": spec})
    shrunk = base64.b64decode(made["text"])
    best, other = (
        http.post("/predict", content=body).raise_for_status().json()["predictions"] for body in (full, shrunk)
    )
    score_shrunk = next((one["score"] for one in other if one["class_id"] == best[0]["class_id"]), 0.0)
    return Compared(
        full_bytes=len(full),
        shrunk_bytes=len(shrunk),
        shrink_ms=made["ms"],
        same=best[0]["class_id"] == other[0]["class_id"],
        score=best[0]["score"],
        score_change=abs(best[0]["score"] - score_shrunk),
    )


def table(rows: Sequence[Compared]) -> str:
    """Markdown."""
    sure = [row for row in rows if row.score >= SURE]
    shrunk_bytes = [row.shrunk_bytes for row in rows]
    cells = {
        "pictures": f"{len(rows)}",
        "MB in full": f"{np.mean([row.full_bytes for row in rows]) / 1e6:.2f}",
        "kB shrunk": f"{np.mean(shrunk_bytes) / 1e3:.0f} (most {max(shrunk_bytes) / 1e3:.0f})",
        "ms to shrink": f"{np.median([row.shrink_ms for row in rows]):.0f}",
        "same first class": f"{np.mean([row.same for row in rows]):.3f}",
        f"same where its score is {SURE:g} or more": f"{np.mean([row.same for row in sure]):.3f} of {len(sure)}",
        "change of its score": f"{np.mean([row.score_change for row in rows]):.3f}",
    }
    return "\n".join("| " + " | ".join(line) + " |" for line in (cells, ["---"] * len(cells), cells.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_images(parser)
    parser.add_argument("--address", default="http://localhost:8000", help="of the running service")
    parser.add_argument("--every", type=int, default=1, help="3: each third picture only")
    args = parser.parse_args()
    with chromium() as browser, httpx.Client(base_url=args.address, timeout=120) as http:
        spec = http.get("/models").json()["models"][0]["input"]
        page = browser.new_page()
        page.goto(args.address)
        paths = picture_files(args.images)[:: args.every]
        print(table([compare(page, http, spec, photograph(path)) for path in tqdm(paths, unit="picture")]))


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Makes the README's pictures of the page, from a running service.

    .venv/bin/python scripts/screenshots.py [--address http://localhost:8000] [--live-s 60]

Sends the sample photographs, one broken file among them, and a large one over an uplink of 20 Mbit/s; then keeps the
service busy for `--live-s` seconds while the page looks on. Writes page.png, phone.png and live.png into
scripts/screenshots.
"""

from __future__ import annotations

import argparse
import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, expect

sys.path.insert(0, str(Path(__file__).parent.parent))
from scripts.browser import chromium

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "engine_build" / "samples"
FOLDER = Path(__file__).parent / "screenshots"
UPLINK_BYTES_PER_S = 20e6 / 8
ROUND_TRIP_MS = 20
CLIENTS = 6
GRAIN = 5  # standard deviation, of 255


def photograph(name: str, size: tuple[int, int]) -> bytes:
    """A sample photograph as large as a camera's, with a camera's grain, in pixels and in bytes."""
    middle = Image.open(SAMPLES / name).convert("RGB").resize((size[0] // 2, size[1] // 2), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(0).normal(0, GRAIN, (middle.height, middle.width, 1))
    grainy = Image.fromarray((np.asarray(middle) + grain).clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    grainy.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    return file.getvalue()


def classified(page: Page) -> None:
    """Puts results on the page, and the measured saving on the first of them."""
    network = page.context.new_cdp_session(page)
    conditions = {"offline": False, "latency": ROUND_TRIP_MS, "downloadThroughput": -1}
    network.send("Network.emulateNetworkConditions", {**conditions, "uploadThroughput": UPLINK_BYTES_PER_S})
    bodies = {
        "IMG_2041.jpg": photograph("cat.jpg", (4000, 2660)),
        "espresso.jpg": (SAMPLES / "espresso.jpg").read_bytes(),
        "half.jpg": (SAMPLES / "rocket.jpg").read_bytes()[:26_000],
    }
    files: Any = [{"name": name, "mimeType": "image/jpeg", "buffer": body} for name, body in bodies.items()]
    page.set_input_files("#file", files)
    expect(page.locator("#summary")).to_contain_text("2 classified · 1 failed", timeout=60_000)
    page.get_by_role("button", name="Measure time saved").first.click()
    expect(page.locator(".measured")).to_be_visible(timeout=60_000)
    page.evaluate("document.activeElement.blur()")


@contextmanager
def load(address: str) -> Iterator[None]:
    """Clients that classify sample photographs until the end, on every model."""
    stop = threading.Event()
    bodies = [path.read_bytes() for path in sorted(SAMPLES.glob("*.jpg"))]

    def send(client: int) -> None:
        with httpx.Client(base_url=address, timeout=60) as http:
            names = [one["name"] for one in http.get("/models").json()["models"]]
            turn = client
            while not stop.is_set():
                turn += 1
                http.post("/predict", params={"model": names[turn % len(names)]}, content=bodies[turn % len(bodies)])

    threads = [threading.Thread(target=send, args=(client,)) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def opened(browser: Browser, address: str, *, scheme: Any, width: int, height: int) -> Page:
    """The page for a reader of a window so large, in pixels."""
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height}, locale="en-GB")
    page = context.new_page()
    page.goto(address)
    expect(page.locator("#about")).to_contain_text("·", timeout=60_000)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="http://localhost:8000", help="of the running service")
    parser.add_argument("--live-s", type=float, default=60, help="seconds that the live tab looks on")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    with chromium() as browser:
        page = opened(browser, args.address, scheme="light", width=1120, height=700)
        classified(page)
        save(page, args.out / "page.png")
        page = opened(browser, args.address, scheme="light", width=390, height=844)
        classified(page)
        page.locator("#results-tools").evaluate("(line) => scrollTo(0, line.offsetTop - 16)")
        save(page, args.out / "phone.png", full=False)
        page = opened(browser, f"{args.address}/#live", scheme="dark", width=1120, height=700)
        with load(args.address):
            page.wait_for_timeout(1000 * args.live_s)
            save(page, args.out / "live.png")


def save(page: Page, path: Path, *, full: bool = True) -> None:
    """A PNG of all of the page, or of what the window shows."""
    image = Image.open(io.BytesIO(page.screenshot(full_page=full))).convert("RGB")
    image.save(path, optimize=True)
    print(f"{path}  {image.width} x {image.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

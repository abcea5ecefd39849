"""The page in a real Chromium, before the running service."""

from __future__ import annotations

import base64
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from scripts.browser import NoBrowser, chromium
from tests.service.clients.page_visit import Visit, detailed, enlarged, jpeg

expect.set_options(timeout=20_000)
MOST_BYTES = 60_000  # of an upload, whatever the photograph
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        with chromium() as started:
            yield started
    except NoBrowser as reason:
        pytest.skip(str(reason))


@pytest.fixture
def visit(browser: Browser, clients_address: str) -> Open:
    """Opens the page for a reader with such settings of a browser context, and nothing must go wrong on it."""

    @contextmanager
    def opened(path: str = "/", **settings: Any) -> Iterator[Visit]:
        context = browser.new_context(**settings)
        context.set_default_timeout(20_000)
        context.grant_permissions(["clipboard-read", "clipboard-write", "camera"])
        try:
            one = Visit(context.new_page(), clients_address + path)
            yield one
            assert one.problems == []
        finally:
            context.close()

    return opened


DROP = """({ pictures }) => {
  const transfer = new DataTransfer();
  for (const [name, text] of pictures)
    transfer.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name, { type: "image/jpeg" }));
  document.body.dispatchEvent(new DragEvent("dragover", { dataTransfer: transfer, bubbles: true, cancelable: true }));
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


def test_three_dropped_and_one_of_them_broken(visit: Open, photographs: dict[str, bytes]) -> None:
    with visit() as reader:
        pictures = {"cat.jpg": photographs["cat.jpg"], "rocket.jpg": photographs["rocket.jpg"][:20_000]}
        pictures["espresso.jpg"] = photographs["espresso.jpg"]
        encoded = [[name, base64.b64encode(body).decode()] for name, body in pictures.items()]
        reader.page.evaluate(DROP, {"pictures": encoded})
        expect(reader.page.locator("#summary")).to_have_text("3 pictures · 2 classified · 1 failed")
        assert "cat" in reader.best("cat.jpg")
        assert reader.best("espresso.jpg") == "espresso"
        expect(reader.card("espresso.jpg").locator(".answers li")).to_have_count(3)
        width = reader.card("espresso.jpg").locator(".fill").first.evaluate("(bar) => bar.style.width")
        assert 50 < float(width.removesuffix("%")) <= 100
        for stage in ("network", "queue", "preprocess", "inference", "total"):
            expect(reader.card("cat.jpg").locator(f"[data-stage={stage}] dd")).to_have_text(
                re.compile(r"^[\d.]+\sm?s$")
            )
        expect(reader.card("rocket.jpg").locator(".error")).to_contain_text("truncated")
        expect(reader.page.locator("#status")).to_contain_text("2 of 3 classified. 1 failed.")


def test_a_large_photograph_is_shrunk_and_means_the_same(visit: Open, photographs: dict[str, bytes]) -> None:
    photo = jpeg(detailed(photographs["espresso.jpg"], (4000, 3000)))
    with visit() as reader:
        reader.choose(("photo.jpg", photo))
        expect(reader.card("photo.jpg").locator(".facts")).to_contain_text(re.compile("^4,000 . 3,000"))
        expect(reader.page.locator("#saved")).to_contain_text("of 1 picture")
        shrunk = reader.best("photo.jpg")
        reader.page.get_by_role("switch", name="Shrink before upload").uncheck()
        reader.page.get_by_role("button", name="Classify again").click()
        expect(reader.card("photo.jpg").locator(".facts")).to_contain_text("sent as it is")
        expect(reader.card("photo.jpg").locator(".answers li")).to_have_count(3)
        assert reader.best("photo.jpg") == shrunk == "espresso"
        small, large = reader.sent_bytes()
        assert small <= MOST_BYTES
        assert large == len(photo)


def test_a_sideways_photograph_is_shrunk_upright_and_the_saving_measured(
    visit: Open, photographs: dict[str, bytes]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right sets it upright
    stored = enlarged(photographs["espresso.jpg"], (1200, 900)).transpose(Image.Transpose.ROTATE_90)
    photo = jpeg(stored, exif=exif)
    with visit() as reader:
        reader.choose(("photo.jpg", photo))
        expect(reader.card("photo.jpg").locator(".facts")).to_contain_text(re.compile("^1,200 . 900"))
        expect(reader.card("photo.jpg").locator(".answers .label").first).to_have_text("espresso")
        reader.card("photo.jpg").get_by_role("button", name="Measure time saved").click()
        expect(reader.card("photo.jpg").locator(".measured")).to_contain_text("Same first class.")
        small, again, full = reader.sent_bytes()
        assert small == again <= MOST_BYTES
        assert full == len(photo)


def test_small_pictures_are_sent_as_they_are(visit: Open, photographs: dict[str, bytes]) -> None:
    with visit() as reader:
        reader.choose(("cat.jpg", photographs["cat.jpg"]))
        expect(reader.card("cat.jpg").locator(".facts")).to_contain_text("small enough")
        expect(reader.card("cat.jpg").locator(".answers li")).to_have_count(3)
        assert reader.sent_bytes() == [len(photographs["cat.jpg"])]


def test_the_live_tab_moves_under_load(visit: Open, clients_address: str, photographs: dict[str, bytes]) -> None:
    stop = threading.Event()

    def load() -> None:
        with httpx.Client(base_url=clients_address, timeout=30) as http:
            while not stop.is_set():
                http.post("/predict", content=photographs["cat.jpg"])

    thread = threading.Thread(target=load)
    with visit("/#live") as reader:
        expect(reader.page.locator("#live-state")).to_contain_text("replica")
        model = reader.page.locator(".model-figures", has=reader.page.get_by_role("heading", name="efficientnet_lite0"))
        rate = model.locator(".tile").first.locator("strong")
        thread.start()
        try:
            expect(rate).not_to_have_text("0.0")
            median = model.get_by_text("p50").locator("xpath=preceding-sibling::strong")
            expect(median).to_have_text(re.compile(r"^[\d.]+\sm?s$"))
            expect(model.locator(".columns li").first).to_be_visible()
            drawn = model.locator(".plot path.line-main").first
            before = drawn.get_attribute("d")
            expect(drawn).not_to_have_attribute("d", before or "")
            expect(model.locator(".plot").first).to_have_attribute("aria-label", re.compile(r"now (?!0\.0,)\d"))
        finally:
            stop.set()
            thread.join()
        stage = reader.page.locator("#live-stages .tile", has=reader.page.get_by_role("heading", name="Preprocessor"))
        running, desired, waiting = stage.locator("strong").all_inner_texts()
        assert int(running) >= 1
        assert int(desired) >= 1
        assert waiting.isdigit()


def test_the_live_tab_says_when_there_is_nothing(visit: Open) -> None:
    with visit() as reader:
        reader.page.route("**/live", lambda route: route.fulfill(status=404))
        reader.page.get_by_role("tab", name="Live").click()
        expect(reader.page.locator("#live-state")).to_contain_text("answered 404")
        expect(reader.page.locator("#live-figures")).to_be_hidden()
        reader.page.unroute("**/live")
        expect(reader.page.locator("#live-figures")).to_be_visible()
        reader.problems[:] = [one for one in reader.problems if "404" not in one]


def test_an_overloaded_service_is_asked_again_when_it_said(visit: Open, photographs: dict[str, bytes]) -> None:
    error = {"error": {"code": "overloaded", "message": "too much is waiting"}}

    def refuse(route: Route) -> None:
        route.fulfill(status=429, headers={"Retry-After": "1"}, json=error)

    with visit() as reader:
        reader.page.route("**/predict*", refuse, times=1)
        reader.choose(("cat.jpg", photographs["cat.jpg"]))
        expect(reader.card("cat.jpg").locator(".pause")).to_contain_text("Attempt 2 begins in")
        expect(reader.card("cat.jpg")).to_contain_text("The service was busy once")
        first, second = (upload.headers for upload in reader.uploads)
        assert "x-retry-attempt" not in first
        assert second["x-retry-attempt"] == "1"


def test_three_pictures_are_in_flight(visit: Open, photographs: dict[str, bytes]) -> None:
    held: list[Route] = []
    going = threading.Event()

    def hold(route: Route) -> None:
        if going.is_set():
            route.continue_()
        else:
            held.append(route)

    with visit() as reader:
        reader.page.route("**/predict*", hold)
        reader.choose(*((f"cat-{n}.jpg", photographs["cat.jpg"]) for n in range(5)))
        expect(reader.page.get_by_text("Classifying…")).to_have_count(3)
        expect(reader.page.get_by_text("Waiting for its turn…")).to_have_count(2)
        going.set()
        for route in held:
            route.continue_()
        expect(reader.page.locator("#summary")).to_have_text("5 pictures · 5 classified")
        assert len(held) == 3


def test_both_languages(visit: Open, photographs: dict[str, bytes]) -> None:
    with visit(locale="en-GB") as reader:
        html = reader.page.locator("html")
        expect(html).to_have_attribute("lang", "en")
        reader.choose(("cat.jpg", photographs["cat.jpg"]))
        expect(reader.page.get_by_role("button", name="Copy as curl")).to_be_visible()
        reader.page.get_by_role("button", name="中文").click()
        expect(html).to_have_attribute("lang", "zh-CN")
        expect(reader.page.get_by_role("button", name="复制为 curl 命令")).to_be_visible()
        expect(reader.page.get_by_role("tab", name="实时")).to_be_visible()
        reader.page.reload()
        expect(html).to_have_attribute("lang", "zh-CN")
        reader.page.get_by_role("button", name="English").click()
        expect(reader.page.get_by_role("tab", name="Live")).to_be_visible()
    with visit(locale="zh-TW") as reader:
        expect(reader.page.locator("html")).to_have_attribute("lang", "zh-CN")
        expect(reader.page.get_by_text("选择图片")).to_be_visible()


def test_by_keyboard_alone(visit: Open, photographs: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(photographs["cat.jpg"])
    with visit() as reader:
        press = reader.page.keyboard.press
        reader.page.on("filechooser", lambda _: None)  # from here on: asked for with the key press it can come too late
        _tab_to(reader.page, "file")
        with reader.page.expect_file_chooser() as chooser:
            press("Enter")
        chooser.value.set_files(tmp_path / "cat.jpg")
        expect(reader.card("cat.jpg").locator(".answers li")).to_have_count(3)
        _tab_to(reader.page, "shrink")
        press("Space")
        expect(reader.page.locator("#shrink")).not_to_be_checked()
        _tab_to(reader.page, "clear")
        press("Enter")
        expect(reader.page.locator(".picture")).to_have_count(0)
        for _ in range(4):
            press("Shift+Tab")
            if reader.page.evaluate("document.activeElement.id") == "tab-classify":
                break
        press("ArrowRight")
        expect(reader.page.get_by_role("tabpanel", name="Live")).to_be_visible()
        expect(reader.page.get_by_role("tab", name="Live")).to_be_focused()


def _tab_to(page: Page, name: str) -> None:
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == name:
            return
    raise AssertionError(f"{name} is not reached by the tab key")


PUT_ON_CLIPBOARD = """async (text) => {
  const bitmap = await createImageBitmap(new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))]));
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  await navigator.clipboard.write([new ClipboardItem({ "image/png": await canvas.convertToBlob() })]);
}"""


def test_pasted_and_from_the_camera(visit: Open, photographs: dict[str, bytes]) -> None:
    with visit() as reader:
        reader.page.evaluate(PUT_ON_CLIPBOARD, base64.b64encode(photographs["espresso.jpg"]).decode())
        reader.page.keyboard.press("Control+v")
        expect(reader.card("pasted-1.png").locator(".answers li")).to_have_count(3)
        assert reader.best("pasted-1.png") == "espresso"
        expect(reader.card("pasted-1.png").get_by_role("link", name="Save the picture")).to_be_visible()
        reader.page.get_by_role("button", name="Use the camera").click()
        expect(reader.page.locator("#video")).not_to_have_js_property("videoWidth", 0)
        reader.page.get_by_role("button", name="Take the picture").click()
        expect(reader.card("camera-1.jpg").locator(".answers li")).to_have_count(3)
        expect(reader.page.locator("dialog")).to_be_hidden()
        reader.page.evaluate("navigator.clipboard.writeText('words')")
        reader.page.keyboard.press("Control+v")
        expect(reader.page.get_by_role("alert")).to_have_text("The clipboard holds no picture.")


def test_the_curl_command_gives_the_same_answer(visit: Open, photographs: dict[str, bytes], tmp_path: Path) -> None:
    name = "it's a cat.jpg"
    (tmp_path / name).write_bytes(photographs["cat.jpg"])
    with visit() as reader:
        reader.page.get_by_label("Model").select_option("samples4")
        reader.page.get_by_label("Classes").select_option("1")
        reader.choose((name, photographs["cat.jpg"]))
        reader.card(name).get_by_role("button", name="Copy as curl").click()
        expect(reader.card(name).get_by_role("button", name="Copied")).to_be_visible()
        command = reader.page.evaluate("navigator.clipboard.readText()")
        best = reader.best(name)
    answer = httpx.Response(200, content=subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True).stdout)
    assert answer.json()["model"] == "samples4"
    assert [one["label"] for one in answer.json()["predictions"]] == [best]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_barrier(visit: Open, photographs: dict[str, bytes], scheme: str) -> None:
    with visit(color_scheme=scheme) as reader:
        large = jpeg(enlarged(photographs["espresso.jpg"], (1200, 800)))
        reader.choose(("espresso.jpg", large), ("broken.jpg", b"\xff\xd8 no picture"))
        expect(reader.card("espresso.jpg").locator(".answers li")).to_have_count(3)
        expect(reader.card("broken.jpg").locator(".error")).to_be_visible()
        _assert_no_barrier(reader.page)
        reader.page.get_by_role("tab", name="Live").click()
        expect(reader.page.locator("#live-stages .tile").first).to_be_visible()
        _assert_no_barrier(reader.page)


def _assert_no_barrier(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    serious = [one for one in found if one["impact"] in {"serious", "critical"}]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in serious] == []

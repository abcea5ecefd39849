"""The running service, and what it says of itself: requests made from the description, and its page in a browser."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import requests
import schemathesis
from axe_playwright_python.sync_playwright import Axe
from hypothesis import settings
from playwright.sync_api import Browser
from schemathesis import Case

from scripts.browser import NoBrowser, chromium
from serve_app.openapi import Served, document
from serve_app.settings import LimitSettings
from tests.service.clients.conftest import configuration

pytestmark = pytest.mark.service

MODELS = tuple(configuration()["applications"][0]["args"]["models"])
DESCRIPTION = document(Served(MODELS, 1000, LimitSettings()))
CONFIG = schemathesis.Config.from_dict(
    {
        "generation": {"deterministic": True, "allow-extra-parameters": False},
        "phases": {"coverage": {"unexpected-methods": ["DELETE", "TRACE"]}},
        "checks": {
            # 501 is the answer to what is never served, 504 to a timeout of a millisecond.
            "not_a_server_error": {"expected-statuses": ["2xx", "4xx", "501", "504"]},
            "negative_data_rejection": {
                "expected-statuses": ["400", "404", "405", "413", "415", "422", "429", "501", "504"]
            },
            # What a schema cannot say: that a text is the name of a model, or a file a picture.
            "positive_data_acceptance": {"enabled": False},
        },
    }
)
described = schemathesis.openapi.from_dict(DESCRIPTION, config=CONFIG)


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as kept:
        yield kept


def test_it_describes_this_service(clients_address: str) -> None:
    assert httpx.get(f"{clients_address}/openapi.json").json() == DESCRIPTION


@described.parametrize()
@settings(max_examples=6, deadline=None, database=None)
def test_every_answer_is_described(case: Case, clients_address: str, session: requests.Session) -> None:
    case.call_and_validate(base_url=clients_address, session=session, timeout=30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        with chromium() as started:
            yield started
    except NoBrowser as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_the_page_is_for_everybody(browser: Browser, clients_address: str, scheme: str, width: int) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})  # type: ignore[arg-type]
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(f"{clients_address}/docs")
    assert page.get_by_role("heading", level=1).inner_text() == "Image Serve: HTTP API"
    assert page.evaluate("document.documentElement.scrollWidth") == width, "it must not be wider than the window"
    assert Axe().run(page).response["violations"] == []
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.url.endswith("#content"), "the first stop of the keyboard leads past the links"
    assert said == []
    page.close()

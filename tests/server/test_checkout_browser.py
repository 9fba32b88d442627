"""The checkout page in a real browser, which is strict about its policy, its cookie and its form."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import MODEL, serving

from tier_middleware import Tier

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e '.[test-browser]'")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


@pytest.fixture
def page() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


def test_a_person_confirms(tmp_path: Path, page: Any) -> None:
    with Tier(f"sqlite:///{tmp_path}/tier.db") as tier, serving(tmp_path) as server:
        tier.push(MODEL)
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        body = {"org": "org:acme", "features": ["plan:pro@1"], "trial_days": 7, "success_url": f"{server.url}/healthz"}
        page.goto(httpx.post(f"{server.url}/v1/checkout", json=body).json()["url"])
        assert page.locator("button").evaluate("it => getComputedStyle(it).backgroundColor") == "rgb(29, 95, 209)"
        assert "No payment is taken here" in page.inner_text("main")
        page.click("button")
        page.wait_for_selector("h1:has-text('Done')")
        assert tier.lookup_phases("org:acme").phases[0].trial
        page.reload()
        assert page.inner_text("h1") == "Done"
        page.click("text=Continue")
        page.wait_for_url("**/healthz")
        assert problems == []


def test_a_page_of_another_origin_cannot_ask_for_anything(tmp_path: Path, page: Any) -> None:
    """What a page that a developer has open can send to a server without a key on the same machine."""
    with Tier(f"sqlite:///{tmp_path}/tier.db") as tier, serving(tmp_path) as server:
        tier.push(MODEL)
        tier.subscribe("org:acme", "plan:free@1")
        page.goto(f"{server.url}/healthz".replace("127.0.0.1", "localhost"))
        report = '{"org": "org:acme", "feature": "feature:calls", "n": 3}'
        script = f"fetch('{server.url}/v1/report', {{method: 'POST', mode: 'no-cors', body: '{report}'}})"
        page.evaluate(script)
        assert "POST /v1/report 403" in server.log
        assert tier.lookup_limit("org:acme", "feature:calls").used == 0

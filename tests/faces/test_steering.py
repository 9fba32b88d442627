"""What a client sends does not steer what is said to it, nor whose request it is."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import pytest
from counting import used
from face_apps import FACES, Face
from test_contract import Visitor

from tier_middleware import AsyncTier, ConfigurationError
from tier_middleware.asgi import org_from_untrusted_header

EVIL = "https://evil.example"
STEERING = {
    "host": "evil.example",
    "forwarded": "host=evil.example;proto=https",
    "x-forwarded-host": "evil.example",
    "x-forwarded-proto": "https",
    "x-forwarded-prefix": "//evil.example",
    "x-original-url": EVIL,
    "x-rewrite-url": EVIL,
    "referer": EVIL,
    "origin": EVIL,
    "accept": "text/html",
}
SCRIPT = "<script>alert(1)</script>"

faces = pytest.mark.parametrize("face", FACES, ids=lambda face: face.name)


@faces
@pytest.mark.parametrize("url", ["/pricing", "https://shop.example/pricing?from=app"])
async def test_where_a_browser_is_sent(face: Face, tier: AsyncTier, url: str) -> None:
    visitor = Visitor(face, tier, upgrade_url=url)
    steered = f"/audit?next={quote(EVIL)}&upgrade_url={quote(EVIL)}&return_to={quote(EVIL)}"
    answer = await visitor.visit(steered, **STEERING)
    assert (answer.status_code, answer.headers["location"]) == (303, url)
    answer = await visitor.visit(steered, **{**STEERING, "accept": "application/json"})
    assert answer.status_code == 402
    assert answer.json()["upgrade"]["url"] == url
    assert "evil" not in answer.text


@faces
async def test_markup_in_a_request_is_in_no_page(face: Face, tier: AsyncTier) -> None:
    answer = await Visitor(face, tier).visit(f"/audit?x={quote(SCRIPT)}", org=SCRIPT, accept="text/html")
    assert (answer.status_code, answer.headers["content-type"]) == (402, "text/html; charset=utf-8")
    assert "<script" not in answer.text


@faces
async def test_orgs_whose_names_are_hardly_told_apart_are_never_mixed_up(face: Face, tier: AsyncTier) -> None:
    """Interleaved, in tasks and threads; what each handler sees of its org is that org's."""
    visitor = Visitor(face, tier)
    rounds = range(3)

    async def visit(org: str) -> str:
        answer = await visitor.visit("/numbers", org=org)
        assert answer.status_code == 200, answer.text
        return answer.text

    seen = await asyncio.gather(*(visit(org) for _ in rounds for org in LIKENESSES))
    named = [text.split(" ", 3)[3] for text in seen]
    assert named == [f"org:{org.removeprefix('org:')}" for _ in rounds for org in LIKENESSES]
    for org in LIKENESSES:
        assert await used(tier, org=f"org:{org.removeprefix('org:')}") == (len(rounds), 0)


LIKENESSES = [
    "acme", "Acme", "ACME", "acme2", "acm", "acme/", "acme%20", "acme+", "acme:feature:convert", "acme;", "acme'--",
    "org:org:acme", "clock_1f/org:acme", "../acme", "acme\\", "acme?", "acme#", "0", "00", "1", "True", "acme" * 100,
]  # fmt: skip


# ---- an org that clients name themselves, where somebody wants that --------------------------------------------------

BELIEVING = [face for face in FACES if face.name != "fastapi-depends"]  # whose org is a dependency
believing = pytest.mark.parametrize("face", BELIEVING, ids=lambda face: face.name)


@believing
async def test_a_header_that_is_believed(face: Face, tier: AsyncTier) -> None:
    visitor = Visitor(face, tier, org=org_from_untrusted_header("X-Customer"))
    assert (await visitor.visit("/status", **{"x-customer": "globex"})).status_code == 200
    assert (await visitor.visit("/status", **{"x-customer": "org:globex"})).status_code == 200
    assert await used(tier, org="org:globex") == (2, 0)
    assert await used(tier, org="org:acme") == (0, 0)  # another header says so, which nobody asked for


@believing
@pytest.mark.parametrize("value", [None, "", " ", "a,b", "acme, globex", "org:", "tab\tbed", "x" * 1025])
async def test_what_is_no_org_in_it_is_nobody(face: Face, tier: AsyncTier, value: str | None) -> None:
    visitor = Visitor(face, tier, org=org_from_untrusted_header("X-Customer"))
    headers = {} if value is None else {"x-customer": value}
    assert (await visitor.visit("/status", **headers)).status_code == 401
    assert visitor.ran == []


@pytest.mark.parametrize("name", ["", "x org", "x-org:", "x\norg", "é", None, 7])
def test_a_name_that_no_header_has(name: str) -> None:
    with pytest.raises(ConfigurationError, match="must be a header's name"):
        org_from_untrusted_header(name)

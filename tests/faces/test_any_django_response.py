"""Any response of a Django view, whatever the view says and however it ends, counts what the README says of it."""

from __future__ import annotations

import asyncio
import wsgiref.util
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, NamedTuple

import django_project
import pytest
from asgi_driver import http_scope
from asgiref.sync import async_to_sync
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django_project import Site
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up import AMOUNTS, BEFORE_IT, CONVERT, START, STEPS, Said, Speaker, Step, counted_of, is_let_through

from tier_middleware import AsyncTier, ManualClock, Tier
from tier_middleware.django import requires_feature
from tier_middleware.requirement import OnDisconnect, Overage

MANY = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))


class Response(NamedTuple):
    """``said`` is said by the view, and ``streamed`` while it streams, if it does."""

    before_it: int
    amount: int
    status: int
    said: Sequence[Step]
    streamed: Sequence[Step]
    on_disconnect: OnDisconnect
    overage: Overage
    end: str = ""


RESPONSES = st.builds(
    Response,
    BEFORE_IT,
    AMOUNTS,
    status=st.sampled_from([200, 200, 302, 404]),
    said=STEPS,
    streamed=STEPS,
    on_disconnect=st.sampled_from(["report", "estimate", "release"]),
    overage=st.sampled_from(["record", "cap"]),
)
ENDS = ("answers", "raises", "streams", "streams and raises", "streams until the client leaves")


def expected(response: Response, said: Said) -> int:
    is_success = response.status < 400 and "raises" not in response.end
    return counted_of(response, said, is_success=is_success, is_whole="leaves" not in response.end)


class Shop:
    """A site with one view, and an org of its own for each visit."""

    def __init__(self, site: Site, response: Response, org: str, clock: ManualClock) -> None:
        self.site = site
        self.response = response
        self.org = org
        self.said = Said(response.amount)
        self.was_called = False
        self.speaker = Speaker(AsyncTier.on(site.tier.core), clock, f"org:{org}")
        site.tier.report(f"org:{org}", CONVERT, response.before_it)

    def gate(self, view: Any) -> Any:
        response = self.response
        return requires_feature(
            CONVERT, response.amount, on_disconnect=response.on_disconnect, overage=response.overage
        )(view)

    async def say(self, request: HttpRequest, steps: Sequence[Step]) -> None:
        self.was_called = True
        await self.speaker.say(request.tier[CONVERT], steps, self.said)  # type: ignore[attr-defined]

    def answer(self, content: Any) -> HttpResponse | StreamingHttpResponse:
        if self.response.end == "raises":
            raise ZeroDivisionError
        kind = StreamingHttpResponse if "streams" in self.response.end else HttpResponse
        return kind(content if "streams" in self.response.end else b"done", status=self.response.status)

    # ---- under WSGI -------------------------------------------------------------------------------------------------

    def view(self, request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
        async_to_sync(self.say)(request, self.response.said)
        return self.answer(self.chunks(request))

    def chunks(self, request: HttpRequest) -> Iterator[bytes]:
        yield b"first"
        if self.response.status < 400:  # else it is settled, and nothing more can be said
            async_to_sync(self.say)(request, self.response.streamed)
        yield b"second"
        if "raises" in self.response.end:
            raise ZeroDivisionError
        yield b"third"

    def visit(self) -> None:
        self.site.serve(self.gate(self.view))
        environ: dict[str, Any] = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "HTTP_X_ORG": self.org}
        wsgiref.util.setup_testing_defaults(environ)
        body: Any = WSGIHandler()(environ, lambda status, headers: None)  # type: ignore[arg-type,return-value]
        parts = iter(body)
        with suppress(ZeroDivisionError):
            if "leaves" in self.response.end:
                next(parts), next(parts, b"")
            else:
                list(parts)
        body.close()

    # ---- under ASGI -------------------------------------------------------------------------------------------------

    async def aview(self, request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
        await self.say(request, self.response.said)
        return self.answer(self.achunks(request))

    async def achunks(self, request: HttpRequest) -> AsyncIterator[bytes]:
        yield b"first"
        if self.response.status < 400:
            await self.say(request, self.response.streamed)
        yield b"second"
        if "raises" in self.response.end:
            raise ZeroDivisionError
        yield b"third"

    async def avisit(self) -> None:
        self.site.serve(self.gate(self.aview))
        has_left, request = asyncio.Event(), [{"type": "http.request", "body": b""}]

        async def receive() -> Any:
            if request:
                return request.pop()
            await has_left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if "leaves" in self.response.end and message.get("body") == b"second":
                has_left.set()
                await asyncio.Event().wait()  # Django cancels what sends

        scope = http_scope(headers=[(b"x-org", self.org.encode())])
        with suppress(ZeroDivisionError):
            await ASGIHandler()(scope, receive, send)  # type: ignore[arg-type,no-untyped-call]


ORGS = count()


def held(site: Site, shop: Shop) -> None:
    """Hold the books to what is said of the response."""
    response = shop.response
    assert shop.was_called == is_let_through(response.before_it, response.amount)
    n = response.before_it + (expected(response, shop.said) if shop.was_called else 0)
    assert site.used(CONVERT, f"org:{shop.org}") == (n, 0)
    assert sum(entry.n for entry in site.tier.history(f"org:{shop.org}", CONVERT)) == n
    assert not site.tier.core.live


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def site(make_tier: Callable[..., AsyncTier], clock: ManualClock) -> Iterator[Site]:
    with Tier.on(make_tier(clock=clock).core) as tier:
        yield Site(tier)
    django_project.change(TIER={"BASE_URL": "memory://"}, MIDDLEWARE=django_project.MIDDLEWARE)


@pytest.mark.parametrize("end", ENDS)
@MANY
@given(response=RESPONSES)
def test_any_response_under_wsgi(site: Site, clock: ManualClock, end: str, response: Response) -> None:
    shop = Shop(site, response._replace(end=end), f"wsgi-{next(ORGS)}", clock)
    shop.visit()
    held(site, shop)


@pytest.mark.parametrize("end", ENDS)
@MANY
@given(response=RESPONSES)
def test_any_response_under_asgi(site: Site, clock: ManualClock, end: str, response: Response) -> None:
    shop = Shop(site, response._replace(end=end), f"asgi-{next(ORGS)}", clock)
    asyncio.run(shop.avisit())
    held(site, shop)

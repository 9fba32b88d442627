"""Responses whose content comes after the view has returned: streams and files, and what others do with them."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
import wsgiref.util
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import django_project
import pytest
from asgi_driver import http_scope
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django_project import Site

from tier_middleware.django import requires_feature

ORG = (b"x-org", b"acme")


def wsgi(**more: Any) -> tuple[Any, list[str]]:
    """A request as a WSGI server makes it: the response's iterable and its status line."""
    environ: dict[str, Any] = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "HTTP_X_ORG": "acme", **more}
    wsgiref.util.setup_testing_defaults(environ)
    told: list[str] = []
    body = WSGIHandler()(environ, lambda status, headers: told.append(status))  # type: ignore[func-returns-value]
    return body, told


def chunks(usage: Any, *, is_failing: bool = False) -> Iterator[bytes]:
    for _ in range(4):
        usage.add(1)
        yield b"chunk"
    if is_failing:
        raise ZeroDivisionError


async def achunks(usage: Any, *, is_failing: bool = False) -> AsyncIterator[bytes]:
    for chunk in chunks(usage, is_failing=is_failing):
        yield chunk


@requires_feature("feature:convert", 2)
def streams(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(chunks(request.tier["feature:convert"]))


@requires_feature("feature:convert", 2)
def breaks(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(chunks(request.tier["feature:convert"], is_failing=True))


@requires_feature("feature:convert", 2)
async def astreams(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(achunks(request.tier["feature:convert"]))


def test_a_stream_is_settled_at_its_end(site: Site) -> None:
    site.serve(streams)
    body, told = wsgi()
    parts = iter(body)
    assert told == ["200 OK"]
    assert [next(parts) for _ in range(4)] == [b"chunk"] * 4
    assert site.used() == (0, 2)
    assert list(parts) == []
    assert site.used() == (4, 0)
    body.close()
    assert site.used() == (4, 0)


def test_a_stream_that_fails_counts_nothing(site: Site) -> None:
    site.serve(breaks)
    body, _ = wsgi()
    with pytest.raises(ZeroDivisionError):
        list(body)
    assert site.used() == (0, 0)
    body.close()
    assert site.used() == (0, 0)


@pytest.mark.parametrize(("read", "n"), [(0, 0), (1, 1), (3, 3)])
def test_a_stream_that_is_closed_early_counts_what_it_added(site: Site, read: int, n: int) -> None:
    site.serve(streams)
    body, _ = wsgi()
    parts = iter(body)
    for _ in range(read):
        next(parts)
    assert site.used() == (0, 2)
    body.close()
    assert site.used() == (n, 0)


@pytest.mark.parametrize(("policy", "read", "n"), [("estimate", 1, 2), ("estimate", 3, 3), ("release", 3, 0)])
def test_what_a_stream_counts_that_is_closed_early(site: Site, policy: Any, read: int, n: int) -> None:
    site.serve(streams, ON_DISCONNECT=policy)
    body, _ = wsgi()
    parts = iter(body)
    for _ in range(read):
        next(parts)
    body.close()
    assert site.used() == (n, 0)
    site.serve(requires_feature("feature:pages", 5, on_disconnect=policy)(plainly_streams), ON_DISCONNECT="report")
    body, _ = wsgi()
    next(iter(body))
    body.close()
    assert site.used("feature:pages") == (5 if policy == "estimate" else 0, 0)


@pytest.mark.parametrize(("policy", "n"), [("report", 1), ("estimate", 2), ("release", 0)])
@pytest.mark.parametrize("ending", [SystemExit, KeyboardInterrupt])
def test_a_stream_that_the_server_ends_is_cut_off(site: Site, policy: Any, n: int, ending: Any) -> None:
    """As gunicorn's sync worker does, from a signal handler, when it has waited for longer than its timeout."""

    @requires_feature("feature:convert", 2)
    def view(request: HttpRequest) -> StreamingHttpResponse:
        def parts() -> Iterator[bytes]:
            request.tier["feature:convert"].add(1)
            yield b"chunk"
            raise ending

        return StreamingHttpResponse(parts())

    site.serve(view, ON_DISCONNECT=policy)
    body, _ = wsgi()
    with pytest.raises(ending):
        list(body)
    assert site.used() == (n, 0)
    body.close()
    assert site.used() == (n, 0)


def plainly_streams(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(iter([b"chunk", b"chunk"]))


def test_a_stream_is_counted_on_the_way_once_it_has_begun(site: Site) -> None:
    site.serve(streams)
    body, _ = wsgi()
    parts = iter(body)
    site.tier.core.tend()
    assert site.used() == (0, 2)
    next(parts)
    site.tier.core.tend()
    assert site.used() == (1, 1)
    assert list(parts) == [b"chunk"] * 3
    assert site.used() == (4, 0)
    body.close()
    site.serve(breaks)
    body, _ = wsgi()
    parts = iter(body)
    next(parts)
    site.tier.core.tend()
    assert site.used() == (5, 1)
    with pytest.raises(ZeroDivisionError):
        list(parts)
    assert site.used() == (4, 0)


def test_a_failure_with_a_stream_gives_back_at_once(site: Site) -> None:
    def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(iter([b"x"]), status=500)

    site.serve(requires_feature("feature:convert")(view))
    wsgi()
    assert site.used() == (0, 0)


def test_head_of_a_stream_is_not_counted(site: Site) -> None:
    site.serve(streams)
    body, _ = wsgi(REQUEST_METHOD="HEAD")
    list(body)
    body.close()
    assert site.used() == (0, 0)


class Replaces:
    """A middleware around ours that answers something else, and forgets what it got."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        self.get_response(request)
        return HttpResponse("something else")


class Wraps(Replaces):
    """Makes a new response of the old one's stream."""

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return StreamingHttpResponse(part.upper() for part in self.get_response(request).streaming_content)


def test_a_stream_that_another_response_replaces_is_given_back(site: Site) -> None:
    site.serve(streams, middleware=[f"{__name__}.Replaces", *django_project.MIDDLEWARE])
    body, _ = wsgi()
    assert list(body) == [b"something else"]
    body.close()
    gc.collect()
    assert site.used() == (0, 0)


def test_content_that_another_response_replaces_is_counted(site: Site) -> None:
    site.serve(
        requires_feature("feature:convert")(lambda request: HttpResponse("work")),
        middleware=[f"{__name__}.Replaces", *django_project.MIDDLEWARE],
    )
    wsgi()
    assert site.used() == (1, 0)  # a success left our middleware: the work was done


@pytest.mark.parametrize("outer", ["django.middleware.gzip.GZipMiddleware", f"{__name__}.Wraps"])
def test_a_stream_inside_of_another_is_settled_at_its_end(site: Site, outer: str) -> None:
    site.serve(streams, middleware=[outer, *django_project.MIDDLEWARE])
    body, _ = wsgi(HTTP_ACCEPT_ENCODING="gzip")
    assert site.used() == (0, 2)
    assert len(b"".join(body)) >= 20
    assert site.used() == (4, 0)


def test_half_of_a_stream_inside_of_another(site: Site) -> None:
    site.serve(streams, middleware=[f"{__name__}.Wraps", *django_project.MIDDLEWARE])
    body, _ = wsgi()
    assert next(iter(body)) == b"CHUNK"
    body.close()
    del body
    gc.collect()
    assert site.used() == (1, 0)


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    return path


def test_a_file_is_settled_before_its_first_byte_and_left_to_the_server(site: Site, file: Path) -> None:
    site.serve(requires_feature("feature:convert")(lambda request: FileResponse(file.open("rb"))))
    sent: list[Any] = []

    class Wrapper:
        """The server's own, which would use sendfile."""

        def __init__(self, filelike: Any, block_size: int) -> None:
            sent.append(filelike)
            self.close = filelike.close

    body, _ = wsgi(**{"wsgi.file_wrapper": Wrapper})
    assert isinstance(body, Wrapper)
    assert sent[0].name == str(file)
    assert site.used() == (1, 0)
    body.close()


async def test_a_file_on_asgi(site: Site, file: Path) -> None:
    async def view(request: HttpRequest) -> FileResponse:
        return FileResponse(io.BytesIO(b"content"))

    site.serve(requires_feature("feature:convert")(view))
    answer = await site.aget()
    assert site.used() == (1, 0)
    assert b"".join(answer.streaming_content) == b"content"


def test_a_file_that_is_none_is_a_stream(site: Site) -> None:
    site.serve(requires_feature("feature:convert")(lambda request: FileResponse(iter([b"a", b"b"]))))
    body, _ = wsgi()
    assert site.used() == (0, 1)
    assert list(body) == [b"a", b"b"]
    assert site.used() == (1, 0)
    body.close()


# ---- on ASGI --------------------------------------------------------------------------------------------------------


class Peer:
    """A client that can leave, and counts what it got until then."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.got: list[dict[str, Any]] = []
        self.has_body = asyncio.Event()
        self._asked = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive(self) -> dict[str, Any]:
        for message in self._asked:
            return message
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.got.append(message)
        if message.get("body"):
            self.has_body.set()
            await asyncio.sleep(0)

    def visit(self) -> asyncio.Task[None]:
        return asyncio.ensure_future(ASGIHandler()(http_scope(headers=(ORG,)), self.receive, self.send))


async def test_an_async_stream_is_settled_before_its_last_message(site: Site) -> None:
    site.serve(astreams)
    seen = []

    class Watching(Peer):
        async def send(self, message: dict[str, Any]) -> None:
            seen.append(site.used())
            await super().send(message)

    await Watching().visit()
    assert seen == [(0, 2)] * 5 + [(4, 0)]


@pytest.mark.parametrize("is_sync", [True, False])
async def test_a_client_that_leaves_before_the_response_has_used_nothing(site: Site, is_sync: bool) -> None:
    begun, may_end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    @requires_feature("feature:convert")
    async def waits(request: HttpRequest) -> HttpResponse:
        begun.set()
        await asyncio.Event().wait()
        return HttpResponse()

    @requires_feature("feature:convert")
    def works(request: HttpRequest) -> HttpResponse:
        loop.call_soon_threadsafe(begun.set)
        may_end.wait(10)
        return HttpResponse()

    site.serve(works if is_sync else waits)
    peer = Peer()
    task = peer.visit()
    await begun.wait()
    assert site.used() == (0, 1)
    peer.left.set()
    await asyncio.sleep(0.05)
    may_end.set()
    await task
    assert peer.got == []
    assert site.used() == (0, 0)


@pytest.mark.parametrize(("policy", "n"), [("report", 3), ("estimate", 5), ("release", 0)])
async def test_what_a_stream_counts_whose_client_leaves(site: Site, policy: Any, n: int) -> None:
    async def endless(usage: Any) -> AsyncIterator[bytes]:
        usage.add(3)
        yield b"x"
        await asyncio.Event().wait()

    @requires_feature("feature:convert", 5, on_disconnect=policy)
    async def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(endless(request.tier["feature:convert"]))

    site.serve(view)
    peer = Peer()
    task = peer.visit()
    await peer.has_body.wait()
    assert site.used() == (0, 5)
    site.tier.core.tend()
    assert site.used() == (3, 2)
    peer.left.set()
    await task
    assert site.used() == (n, 0)


async def test_a_sync_stream_on_asgi_is_settled_too(site: Site) -> None:
    site.serve(streams)
    peer = Peer()
    with pytest.warns(Warning, match="must consume synchronous iterators"):
        await peer.visit()
    assert site.used() == (4, 0)


async def test_an_async_stream_that_another_response_replaces_is_given_back(site: Site) -> None:
    site.serve(astreams, middleware=[f"{__name__}.Replaces", *django_project.MIDDLEWARE])
    await Peer().visit()
    gc.collect()
    assert site.used() == (0, 0)

"""What an endpoint is, and what its handler is given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from msgspec import Struct
from starlette.responses import Response

from ..client import AsyncTier
from .reading import read_body
from .watch import Watch

__all__ = ["Call", "Endpoint", "Handler", "Service"]

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Service:
    """What all requests share: the engine's client, a secret that signs, where people reach the server, who waits."""

    tier: AsyncTier
    secret: bytes = field(repr=False)
    public_url: str | None = None
    has_key: bool = False
    watch: Watch = field(default_factory=Watch)


@dataclass(slots=True)
class Call(Generic[A]):
    """One request for an endpoint: what was ``asked``, checked, and the client that it is asked of.

    ``headers`` are the request's, by lower-case name. ``url`` is the address under which the caller reached the server,
    without a slash at its end. A handler may add to ``answer_headers``.
    """

    asked: A
    tier: AsyncTier
    service: Service
    headers: Mapping[str, str]
    url: str
    answer_headers: dict[str, str] = field(default_factory=dict)


Handler: TypeAlias = Callable[[Call[Any]], Awaitable[Struct | Response]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A method and a path, what may be asked there, and what is answered.

    A struct for the ``query`` or the ``body`` checks what is asked, and documents it; both together are not supported.
    ``read`` makes of a body what the handler gets: the struct, unless it is said otherwise.
    ``is_open``: it is answered without the API key. ``is_clocked``: the header ``Tier-Clock`` puts the request in the
    time of a test clock. ``extension`` names what this adds to Tier's API.
    """

    method: Literal["GET", "POST"]
    path: str
    handler: Handler
    about: str
    answer: type[Struct] | tuple[type[Struct], ...]
    query: type[Struct] | None = None
    body: type[Struct] | None = None
    read: Callable[[bytes, type[Any]], Any] = read_body
    media: str = "application/json"
    is_open: bool = False
    is_clocked: bool = False
    is_documented: bool = True
    also: frozenset[int] = frozenset()
    """Errors of its own besides those that any endpoint has."""
    extension: str = ""
    header_about: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Headers of the request that mean something here besides the clock, and what."""

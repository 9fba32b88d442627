"""A module of its own, with string annotations and a name that another module has too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Body, Header, Query
from fastapi.requests import HTTPConnection
from pydantic import BaseModel

from tier_middleware.asgi import requires_feature

if TYPE_CHECKING:
    from decimal import Decimal


class Item(BaseModel):
    name: str
    size: int = 1


@requires_feature("feature:convert")
async def convert(
    item: Item, q: Annotated[int, Query(ge=1)] = 1, x_trace: Annotated[str | None, Header()] = None
) -> Item:
    """Convert an item."""
    return Item(name=item.name, size=q)


@requires_feature("feature:convert")
async def unresolvable(item: Item, n: int = 1) -> Decimal:
    return item.size + n  # type: ignore[return-value]


@requires_feature("feature:convert")
async def own_connection(connection: HTTPConnection, n: int = 1) -> dict[str, Any]:
    return {"org": connection.state.tier.org, "n": n}


@requires_feature("feature:convert")
async def own_connection_unresolvable(connection: HTTPConnection, n: int = 1) -> Decimal:
    return connection.state.tier.org  # type: ignore[no-any-return]


@requires_feature("feature:convert")
async def own_annotated_connection(connection: Annotated[HTTPConnection, "mine"], n: int = 1) -> dict[str, Any]:
    return {"org": connection.state.tier.org, "n": n}


@requires_feature("feature:convert", amount=lambda request, kwargs: kwargs["item"].size)
def sized(item: Item, note: Annotated[str, Body()] = "") -> Item:
    return item

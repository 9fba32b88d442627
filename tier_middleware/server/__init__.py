"""A face that speaks Tier's API: any engine of ours as a server, for every client of Tier's.

`TierServer` is an ASGI application of its own, which
``tier-middleware serve`` runs, and which can be mounted in another:

    app.mount("/tier", TierServer(tier, api_key=...))

An endpoint is an `Endpoint` in a table: a method and a path, the structs that its query or body is checked with and
that it answers, and a handler, ``async def limits(call: Call[OrgQuery]) -> Limits``. The handler gets what was asked,
checked, and a client (``call.tier``), which is in the time of the request's ``Tier-Clock`` where there is one. It
returns its struct; a `TierError` that it raises is answered as Tier's errors are. To add some: write a module here
with a table ``ENDPOINTS``, and add it to the list in `tier_middleware.server.routes`. Request ids, the key, limits of
bodies, 404s and 405s, the log and ``/openapi.json`` follow from the table. An endpoint with a name in ``extension``
has it in the header ``tier-extensions`` of every answer, which is how clients know.
"""

from .application import TierServer

__all__ = ["TierServer"]

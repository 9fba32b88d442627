"""``http://``, ``https://``: a server that speaks Tier's API. Needs the extra ``http``.

``engine`` says where an operation is decided: in this process (``local``, by what ``orgs`` knows), by a server that is
one of ours (``shared``), or by a call (``accounts``, ``plans``, ``clocks``). ``delivery`` sends what waits in the
outbox, and ``follower`` hears of changes. All of them ask by way of ``server``, and that by ``transport``.
"""

from __future__ import annotations

from .engine import HttpEngine

__all__ = ["HttpEngine"]

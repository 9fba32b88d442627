"""The face for ASGI: Starlette, FastAPI and any other application behind it.

Pure ASGI; the request body is never read. The messages are those of
https://asgi.readthedocs.io/en/latest/specs/www.html.

``middleware`` gives each request its context and gates the routes of its table, ``decorator`` gates handlers, and
``exchange`` (of WebSockets ``sockets``) settles what a response counts at its last message.
"""

from ..context import FeatureUsage, TierContext
from ..refusal import Refusal
from ..requirement import Requirement
from ..untrusted import org_from_untrusted_header
from .decorator import requires_feature
from .middleware import TierMiddleware

__all__ = [
    "FeatureUsage",
    "Refusal",
    "Requirement",
    "TierContext",
    "TierMiddleware",
    "org_from_untrusted_header",
    "requires_feature",
]

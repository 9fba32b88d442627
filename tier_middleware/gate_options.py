"""What a middleware sets for all its routes, whichever framework it is of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .errors import ConfigurationError
from .requirement import Idempotency, OnDisconnect, OnRefused, OrgOf, checked_idempotency, checked_on_disconnect
from .settings import OnError, checked_on_error, checked_url

__all__ = ["GateOptions"]


@dataclass(frozen=True, slots=True)
class GateOptions:
    """What a middleware sets for all its routes. Raises `ConfigurationError` that names the option and the value."""

    org: OrgOf | None = None
    upgrade_url: str | Callable[[], str] | None = None
    """A callable is asked for each refusal: what it answers may depend on the request, such as on its language."""
    on_refused: OnRefused | None = None
    on_error: OnError | None = None
    on_disconnect: OnDisconnect | None = None
    idempotency: Idempotency | None = None

    def __post_init__(self) -> None:
        for name in ("org", "on_refused"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise ConfigurationError(f"{name}: must be a callable, got {value!r}", path=name)
        if self.on_error is not None:
            checked_on_error(self.on_error)
        checked_on_disconnect(self.on_disconnect)
        checked_idempotency(self.idempotency)
        if not callable(self.upgrade_url):
            checked_url(self.upgrade_url)

    def upgrade_page(self) -> str | None:
        """Where browsers are sent now."""
        return checked_url(self.upgrade_url() if callable(self.upgrade_url) else self.upgrade_url)

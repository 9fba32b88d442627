"""The port that every engine implements. `tier_middleware.testing.conformance` says in tests what it means.

``memory`` is the shortest engine to read. ``sqlite`` has the connections of the embedded one, and ``statements`` what
its operations do, which Django's engine runs, too: parts of its tables have a module each (``catalogue``, ``ledger``,
``keys``, ``changes``), and ``schema`` makes them. ``http`` is a server. What all of them answer to a no is in
``verdicts``, and how they take in an export in ``transfer``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Protocol, TypeVar, runtime_checkable

from ..ops import Op, Usage
from ..transfer import Line

__all__ = ["Backed", "Engine", "Hosted", "Portable", "Remote"]

R = TypeVar("R")


class Engine(Protocol):
    """Keeps entitlements and usage. Usable from any number of threads and event loops, and after ``fork()``.

    An engine performs one operation at a time, at once: it never sleeps. Where it would have to wait for another
    writer it raises `tier_middleware.ops.Busy`, having done nothing, and the driver (`tier_middleware.drive`) waits
    in its own colour. So one engine serves sync and async callers; but see `Remote` and `Hosted`.
    """

    def open(self) -> None:
        """Make ready: connect, create, migrate. May block, so async callers run it in a thread. Idempotent.

        Raises `ConfigurationError` for what will never work, `Busy` and `EngineUnavailable` for what may later.
        """
        ...

    def attempt(self, op: Op[R]) -> R:
        """Perform one operation, atomically. Opens the engine where that has not been done.

        Raises `Busy` (nothing was done), `EngineUnavailable` (the outcome may be unknown), and what the operation says.
        """
        ...

    def close(self) -> None:
        """Let go of connections and files; what was committed stays. Idempotent, and a later attempt opens again."""
        ...


@runtime_checkable
class Backed(Protocol):
    """An engine that may be away while this process is not. What it could not count meanwhile waits in an outbox."""

    @property
    def address(self) -> str:
        """Which engine it is, without secrets: what waits for one is not given to another."""
        ...


@runtime_checkable
class Hosted(Protocol):
    """An engine on the application's own connections: what it does may be part of a transaction of the application's,
    and it blocks. On an event loop `Engine.attempt` raises `tier_middleware.ops.OnLoop`, having done nothing.
    """

    def attempt_within(self, op: Op[R], seconds: float) -> R:
        """`Engine.attempt` for whoever may wait for other writers: where the database keeps a line, in it, so that who
        came first is first. Raises `Busy` (nothing was done) after so many seconds.
        """
        ...

    async def in_thread(self, work: Callable[[], None]) -> BaseException | None:
        """Do what blocks in the thread where the application's sync code runs. It is not abandoned: answers when it is
        done, with the cancellation that reached the task meanwhile, if any.
        """
        ...

    def when_certain(self, then: Callable[[], None]) -> None:
        """Call ``then`` once all that was done until now is certain: at once, or when the transaction around it has
        been committed. Never, where that is rolled back.
        """
        ...

    def leave_thread(self) -> None:
        """Close what this thread has open: it is none of those in which the application's framework does so."""
        ...

    def when_lost(self, then: Callable[[], None]) -> None:
        """Call ``then`` whenever the tables were emptied under the engine, as test runners do between tests."""
        ...


@runtime_checkable
class Remote(Protocol):
    """An engine in front of a server: its ``attempt`` may wait for a network. The server takes payments."""

    @property
    def counts(self) -> Mapping[str, int]:
        """What became of reports, by reason (see `Tier.counts`)."""
        ...

    async def aattempt(self, op: Op[R]) -> R:
        """`Engine.attempt` for async callers."""
        ...

    def attempt_at_once(self, op: Op[R]) -> R:
        """What needs no waiting; raises `Busy` for the rest."""
        ...

    def forget(self, org: str) -> None:
        """Ask the server at the next check of this org."""
        ...

    def glance(self, org: str) -> tuple[Usage, ...]:
        """What is known of an org's usage without asking. Raises `EngineUnavailable` where nothing is."""
        ...


@runtime_checkable
class Portable(Protocol):
    """An engine whose contents can be moved to another. Both calls may take long."""

    def export(self) -> Generator[Line, None, None]:
        """All that is stored at one moment, header first; others go on writing meanwhile. Open holds stay behind."""
        ...

    def load(self, lines: Iterable[Line], *, replace: bool = False) -> None:
        """Take in the lines of an export after its header, all or nothing; `transfer.take_in` says what is refused.

        The lines are at hand: they were read and checked before. Others wait meanwhile, and see nothing of it until all
        is there. Raises `Busy` before it takes the first line; then they are given to it again.
        """
        ...

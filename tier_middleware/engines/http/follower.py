"""Following the changes of limits that a server tells of: a thread, which starts when there is something to follow."""

from __future__ import annotations

import logging
import threading
from typing import Final

from ... import forks
from ...errors import TierError
from ...extension import asking
from ...extension.forms import CHANGES
from ...reporting.backoff import server_backoff_seconds
from .orgs import Orgs
from .server import Server

__all__ = ["Follower"]

logger: Final = logging.getLogger("tier_middleware")

WAIT_SECONDS: Final = 10.0  # of one question: the server does not know of a client that is gone for so long


class Follower:
    """Has `Orgs` ask anew about those whose limits have changed. Survives ``fork()``, and servers that come and go.

    What changed while the server could not be asked is not known, so then everything may have.
    """

    def __init__(self, server: Server, orgs: Orgs) -> None:
        self._server = server
        self._orgs = orgs
        self._reset()
        forks.watch(self)

    def _reset(self) -> None:
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_stopped = threading.Event()

    def wake(self) -> None:
        """Follow, if the server tells of changes and nobody does yet."""
        if self._thread is None and CHANGES in self._server.extensions:
            self._start()

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None:
                return
            self._is_stopped = threading.Event()
            thread = threading.Thread(target=self._run, args=(self._is_stopped,), name="tier-changes", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # at the interpreter's end, or of too many: limits are asked for as they age
                logger.warning("tier: changes of limits are not followed: %s", error)
                return
            self._thread = thread

    def stop(self) -> None:
        """End the thread, which may be waiting for the server: it does nothing more, and is not waited for."""
        with self._starting:
            self._thread = None
            self._is_stopped.set()

    def _run(self, is_stopped: threading.Event) -> None:
        since, failures = "", 0
        while not is_stopped.is_set():
            if CHANGES not in self._server.extensions:
                self._end(is_stopped)
                return
            try:
                since, failures = self._followed(since, is_stopped), 0
                continue
            except TierError as error:
                logger.debug("tier: changes of limits are not known: %s", error)
            except Exception:  # a thread that died would be noticed by nobody
                logger.exception("tier: following changes of limits failed, and goes on")
            since, failures = "", failures + 1
            is_stopped.wait(server_backoff_seconds(failures))

    def _followed(self, since: str, is_stopped: threading.Event) -> str:
        """Wait for changes since a cursor; answers the next cursor."""
        wait = WAIT_SECONDS if since else 0.0
        request = asking.changes(since, wait)
        found = asking.changes_in(request, self._server.waited(request, wait + self._server.timeout))
        if is_stopped.is_set():
            return found.cursor
        if not since or found.is_everything:
            self._orgs.changed(None)
        elif found.orgs:
            self._orgs.changed(found.orgs)
        return found.cursor

    def _end(self, is_stopped: threading.Event) -> None:
        """The server tells of no changes any more; one that does is followed again."""
        with self._starting:
            if self._is_stopped is is_stopped:
                self._thread = None

    # ---- forks ------------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        pass

    def after_fork(self, *, is_child: bool) -> None:
        if is_child:  # the thread has stayed with the parent
            self._reset()

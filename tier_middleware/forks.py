"""What has to happen when the process forks, so that parent and child can both go on: locks, and open files."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Final, Protocol

__all__ = ["Forkable", "watch"]


class Forkable(Protocol):
    """Something that forks must not tear."""

    def before_fork(self) -> None:
        """Come to rest: nobody may be half-way through anything when the process is copied."""
        ...

    def after_fork(self, *, is_child: bool) -> None:
        """Go on, in the parent and in the child."""
        ...


_watched: Final[weakref.WeakSet[Forkable]] = weakref.WeakSet()
_resting: Final[list[Forkable]] = []
_fork_lock: Final = threading.Lock()


def watch(forkable: Forkable) -> None:
    """Tell an object of every fork for as long as it lives."""
    _watched.add(forkable)


def _before() -> None:
    _fork_lock.acquire()  # two threads may fork at once
    for forkable in list(_watched):
        forkable.before_fork()
        _resting.append(forkable)


def _after(*, is_child: bool) -> None:
    while _resting:
        _resting.pop().after_fork(is_child=is_child)
    _fork_lock.release()


os.register_at_fork(
    before=_before,
    after_in_parent=lambda: _after(is_child=False),
    after_in_child=lambda: _after(is_child=True),
)

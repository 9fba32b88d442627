"""What reads JSON of each kind, made by one thread at a time.

msgspec (0.22) learns what a struct has when it is first asked for one, and tells nobody that it has not finished: a
thread that asks meanwhile reads what is not there yet, and the process ends.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Final, TypeVar

import msgspec

__all__ = ["decoder_of", "known"]

T = TypeVar("T")

_decoders: Final[dict[type[Any], msgspec.json.Decoder[Any]]] = {}
_learning = threading.Lock()
# a child must not inherit what another thread is in the middle of
os.register_at_fork(before=_learning.acquire, after_in_parent=_learning.release, after_in_child=_learning.release)


def decoder_of(kind: type[T]) -> msgspec.json.Decoder[T]:
    """The decoder of a kind, which any number of threads may use."""
    decoder = _decoders.get(kind)
    if decoder is None:
        with _learning:
            decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    return decoder


def known(kind: type[T]) -> type[T]:
    """The kind, for `msgspec.convert`, which any number of threads may ask for now."""
    decoder_of(kind)
    return kind

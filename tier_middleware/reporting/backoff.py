"""How long to wait before what failed is tried again: longer each time, and never quite as long as anybody else."""

from __future__ import annotations

from typing import Final

from tenacity import RetryCallState, Retrying
from tenacity.wait import wait_base, wait_exponential, wait_random

__all__ = ["batch_backoff_seconds", "server_backoff_seconds"]

SERVER: Final = wait_exponential(multiplier=0.2, max=30) + wait_random(0, 0.2)
BATCH: Final = wait_exponential(multiplier=1, max=600) + wait_random(0, 1)


def server_backoff_seconds(failures: int) -> float:
    """For a server that does not answer: at most half a minute."""
    return _seconds(SERVER, failures)


def batch_backoff_seconds(attempts: int) -> float:
    """For one batch that a server does not take: at most ten minutes."""
    return _seconds(BATCH, attempts)


def _seconds(backoff: wait_base, attempt: int) -> float:
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = attempt
    return float(backoff(state))

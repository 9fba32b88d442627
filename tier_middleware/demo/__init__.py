"""``tier-middleware demo``: a walk through the example application, over a real socket."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Final

__all__ = ["main"]

NEEDED: Final = ("fastapi", "httpx", "itsdangerous", "python_multipart", "rich", "uvicorn")


def main(keep: bool = False, port: int | None = None) -> int:
    """Run the demo; answers the exit status: 1 if a step did not go as told, or the server did not start.

    With ``keep`` the server stays until Ctrl-C for a person to try. ``port`` is on 127.0.0.1, a free one by default.
    """
    missing = [module for module in NEEDED if find_spec(module) is None]
    if missing:
        sys.stderr.write(
            f'the demo needs more packages: pip install "tier-middleware[demo]" (no {", ".join(missing)})\n'
        )
        return 1
    from .tour import run  # needs them

    return run(keep=keep, port=port)

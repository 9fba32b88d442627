"""``tier-middleware demo``: a walk through an example application, over a real socket."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Final

__all__ = ["main"]

NEEDED: Final = ("fastapi", "httpx", "itsdangerous", "python_multipart", "rich", "uvicorn")
NEEDED_FOR_DJANGO: Final = ("django", "httpx", "rest_framework", "rich", "uvicorn")


def main(keep: bool = False, port: int | None = None, django: bool = False) -> int:
    """Run the demo; answers the exit status: 1 if a step did not go as told, or the server did not start.

    With ``keep`` the server stays until Ctrl-C for a person to try. ``port`` is on 127.0.0.1, a free one by default.
    ``django`` is for the example of that framework.
    """
    missing = [module for module in (NEEDED_FOR_DJANGO if django else NEEDED) if find_spec(module) is None]
    if missing:
        extras = "demo,drf" if django else "demo"
        sys.stderr.write(
            f'the demo needs more packages: pip install "tier-middleware[{extras}]" (no {", ".join(missing)})\n'
        )
        return 1
    from .django_tour import DjangoTour  # these need them
    from .tour import Tour
    from .walk import run

    return run(DjangoTour if django else Tour, keep=keep, port=port)

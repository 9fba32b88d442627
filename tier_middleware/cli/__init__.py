"""The command line, ``tier-middleware``. Its commands are in `tier_middleware.cli.app`; they need the extra ``cli``.

What is more than a call of `Tier` has a module: ``doctor``, ``outbox``, ``pushing``, ``moving`` and ``serving``.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command that ``sys.argv`` names; answers the exit status."""
    try:
        from .app import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("tier_middleware"):
            raise
        sys.stderr.write(
            f'error: the command line needs more packages: pip install "tier-middleware[cli]" ({error.msg})\n'
        )
        return 1
    except KeyboardInterrupt:  # while importing; from then on the app answers
        return 130
    return run()

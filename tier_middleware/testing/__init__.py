"""For tests: of programs that use this package, and of engines that somebody else writes.

`tier_middleware.testing.conformance` has what every engine must do. Nothing here is imported by the package itself.
"""

import sys

__all__: list[str] = []

if "pytest" in sys.modules:  # so that a failing assertion shows its values; nothing here needs pytest otherwise
    for _name in ("bench", "clocks", "conformance", "ledgers", "likeness", "orgs", "schedules"):
        sys.modules["pytest"].register_assert_rewrite(f"{__name__}.{_name}")

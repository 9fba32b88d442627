"""For tests: of programs that use this package, and of engines that somebody else writes.

`tier_middleware.testing.conformance` has what every engine must do. Nothing here is imported by the package itself.
"""

import sys
from pkgutil import iter_modules

__all__: list[str] = []

if "pytest" in sys.modules:  # so that a failing assertion shows its values; nothing here needs pytest otherwise
    for _module in iter_modules(__path__, f"{__name__}."):
        sys.modules["pytest"].register_assert_rewrite(_module.name)

"""What every engine must do, as tests. Whoever writes an engine runs them in four lines:

    class TestMyEngine(EngineConformance):
        def engine(self, now_ms):
            return MyEngine("my://localhost", now_ms)

Nothing sleeps: time is the clock that the test moves, and expiry is stored data compared with it. Operations go through
`tier_middleware.drive.perform`, as they do in programs, so an engine may answer `Busy` when others write.
"""

from __future__ import annotations

from .clocks import Clocks
from .isolation import Isolation
from .ledgers import Ledgers
from .levels import Levels
from .lifecycle import Lifecycle
from .likeness import Likeness
from .models import Models
from .once import Once
from .orgs import Deleting, Orgs
from .periods import Periods
from .races import Races
from .renewals import Renewals
from .reports import Reporting
from .reservations import Reserving, Settling
from .schedules import Schedules
from .sharing import Changing, Resending
from .subscriptions import DefaultPlan, Subscriptions

__all__ = ["EngineConformance"]


class EngineConformance(
    Reserving,
    Settling,
    Renewals,
    Once,
    Reporting,
    Periods,
    Subscriptions,
    Schedules,
    Orgs,
    Levels,
    Ledgers,
    DefaultPlan,
    Isolation,
    Models,
    Deleting,
    Races,
    Lifecycle,
    Clocks,
    Likeness,
    Changing,
    Resending,
):
    """All of it. A subclass gives ``engine(self, now_ms)``: an engine of its own, empty, for each test."""

"""The operations that engines perform, as data: the port between decisions and storage.

Each operation is atomic: it happens whole or not at all, whatever other threads and processes do. An engine answers
with the type in the brackets, or raises what the operation's docstring says; besides that only `EngineUnavailable` and,
where it cannot be opened, `ConfigurationError`. Times are whole milliseconds since the Unix epoch; ids and keys come
with the operation, so that one that is sent again is the same operation. An ``org`` is a key: the org's name, or that
of an org under a test clock (`tier_middleware.names.org_key`), which is another org; answers and errors have the name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar, Final, Generic, Literal, NamedTuple, TypeVar

from msgspec import Struct

from .ledger import History
from .model import Model, Phase
from .names import FeaturePlan
from .orginfo import OrgInfo
from .policy import Period, PlannedPhase, Reason

__all__ = [
    "UNPLACED",
    "Adjust",
    "AdvanceClock",
    "Ask",
    "Busy",
    "Changes",
    "Check",
    "Checked",
    "Checkout",
    "ClockRecord",
    "Commit",
    "Committed",
    "DeleteOrg",
    "Demand",
    "Describe",
    "Elsewhere",
    "EngineInfo",
    "Granted",
    "Hold",
    "Identify",
    "Kept",
    "LookUp",
    "LookUpClock",
    "LookUpKeys",
    "LookUpPaymentMethods",
    "LookUpPhases",
    "MakeClock",
    "OnLoop",
    "Op",
    "OrgRecord",
    "Pause",
    "PhasesInfo",
    "Pull",
    "Push",
    "PushResult",
    "ReadChanges",
    "ReadHistory",
    "Record",
    "Recorded",
    "Release",
    "Renew",
    "Reserve",
    "Schedule",
    "Shortfall",
    "UnderClock",
    "UpdateOrg",
    "Usage",
]

R = TypeVar("R", covariant=True)

UNPLACED: Final = -1  # the place of a hold whose reservation was sent, and whose answer never came


class Busy(Exception):
    """Somebody else is writing. Nothing was done; the driver waits a moment and performs the operation again."""


class OnLoop(RuntimeError):
    """An engine that blocks was asked on an event loop. Nothing was done; the async driver asks it elsewhere."""


class Op(Struct, Generic[R], frozen=True, gc=False):
    """An operation that is answered with an ``R``. (Structs, since they are made for every request, and cheaply.)"""

    is_finishing: ClassVar[bool] = False
    """Ends work that was begun: a driver does not let a cancelled task abandon it half-way."""
    is_for_driver: ClassVar[bool] = False
    """Performed by the driver itself; engines never see it."""


# ---- values ---------------------------------------------------------------------------------------------------------


class Demand(Struct, frozen=True, gc=False):
    """What one request needs of one feature. ``is_given`` False: nobody said how much, so 1 is assumed."""

    feature: str
    n: int
    is_given: bool = True


class Hold(Struct, frozen=True, gc=False):
    """Capacity that is kept for a request. ``place`` is where the engine counts it: its own business.

    With `UNPLACED` the engine looks for it among all that its org has of the feature.
    """

    id: int
    org: str
    feature: str
    n: int
    place: int


class Kept(Struct, frozen=True, gc=False):
    """A hold whose work was done: ``n`` units are to be counted, with ``is_capped`` up to the limit only.

    With a ``key`` they count once for that key, whichever hold they are of.
    """

    hold: Hold
    n: int
    is_capped: bool = False
    key: str = ""


class Committed(Struct, frozen=True, gc=False):
    """What became of one commit: units that passed the limit, units that were left out by a cap, late or not."""

    over: int = 0
    capped: int = 0
    has_expired: bool = False


class Granted(Struct, frozen=True, gc=False):
    """One hold for each demand; None for an on/off feature, for which nothing is counted."""

    holds: tuple[Hold | None, ...]


class Shortfall(Struct, frozen=True, gc=False):
    """The definite no, and the numbers behind it.

    ``code`` is Tier's: ``org_not_found``, ``feature_not_found``, or the reason.
    """

    org: str
    feature: str
    requested: int
    used: int
    reserved: int
    limit: int | None
    reason: Reason
    code: str
    resets_at_ms: int | None = None


class Usage(Struct, frozen=True, gc=False):
    """What an org may use of a feature in the current billing period, and has used, in whole units.

    ``limit`` and ``remaining`` are None for unlimited; ``remaining`` leaves out what open reservations hold.
    An on/off feature shows ``used=1`` without a limit, as in Tier. ``resets_at`` ends the billing period.
    """

    feature: str
    used: int
    limit: int | None
    reserved: int = 0
    resets_at: datetime | None = None

    @property
    def remaining(self) -> int | None:
        return None if self.limit is None else max(0, self.limit - self.used - self.reserved)


class Checked(Struct, frozen=True, gc=False):
    """The answer to a check: the usage, and why not where the answer is no."""

    usage: Usage
    shortfall: Shortfall | None


class Recorded(Struct, frozen=True, gc=False):
    """What a report did: ``over`` units passed the limit; ``is_new`` False: its key was known, nothing was counted."""

    over: int = 0
    is_new: bool = True


class PushResult(NamedTuple):
    """What a push did with one feature, in Tier's words: ``ok, created`` or ``failed, plan already exists``."""

    feature: str
    status: Literal["ok", "failed"]
    reason: str


class Changes(NamedTuple):
    """Whose limits may have changed up to ``cursor``: these orgs, or with ``is_everything`` anybody's."""

    cursor: str
    orgs: tuple[str, ...] = ()
    is_everything: bool = False


class PhasesInfo(NamedTuple):
    """An org's current phase and those that are to come (none without a subscription), and the plans that they name.

    ``present_ms`` is the org's now. ``periods`` are the phases' billing periods where an engine knows them without
    knowing the plans' intervals.
    """

    phases: tuple[Phase, ...]
    model: Model
    present_ms: int
    periods: tuple[Period, ...] = ()


class OrgRecord(NamedTuple):
    """When an org was first named, and what is known of it. ``stripe_id`` is empty on engines without payments."""

    created_ms: int
    info: OrgInfo
    stripe_id: str = ""


class ClockRecord(NamedTuple):
    """A test clock as it is stored."""

    id: str
    name: str
    present_ms: int


class EngineInfo(NamedTuple):
    """Which engine this is: a word for it, where it keeps its data, and since when. Of a server, whose it is."""

    kind: str
    url: str
    created_ms: int
    email: str = ""
    key_source: str = ""
    isolated: bool = False


# ---- operations -----------------------------------------------------------------------------------------------------


class Reserve(Op["Granted | Shortfall"], frozen=True, gc=False):
    """Hold capacity for every demand, or for none.

    Refused with a `Shortfall` for the first demand that does not fit: ``used + reserved + n <= limit`` must hold, and
    for an n of 0 something must be left. An org that never had a phase gets ``default_plan`` first. Demands name
    different features; ``ids`` has one id a demand. A level holds no capacity: it is only compared with the limit;
    one whose amount nobody gave is an `InvalidRequest`. Holds expire at ``expires_ms``: from then on their capacity
    may be given to others.

    Sent again while its holds are open it is the same reservation, and is granted whatever is left; an id that is held
    for another n is an `InvalidRequest`. One that arrives after its release holds until it expires.
    """

    org: str
    demands: tuple[Demand, ...]
    ids: tuple[int, ...]
    now_ms: int
    expires_ms: int
    default_plan: str | None = None


class Commit(Op["tuple[Committed, ...]"], frozen=True, gc=False):
    """Count the work of holds, in the plan and period in which they were reserved, and give back what is left of them.

    Each hold counts once: one that was committed or released before is passed over. One that expired still counts.
    ``n`` is its total: what a `Renew` has counted of it is part of that, and taken back where it was more. One whose
    key is known, as a `Record` or another commit has left it, is given back instead; keys are those of `Record`.
    """

    kept: tuple[Kept, ...]
    now_ms: int
    is_finishing: ClassVar[bool] = True


class Renew(Op["tuple[Committed, ...]"], frozen=True, gc=False):
    """Keep holds alive until ``expires_ms``, and count what of their work was done so far: ``n``, the total of each.

    Only what is new of it is counted, and taken out of what the hold keeps reserved; a lower total changes nothing. So
    it may be sent again, and arrive late. A hold that was settled is passed over. One that has expired is counted, and
    stays expired; none expires earlier than before. Levels are not counted before their commit. What a cap leaves out,
    or cannot be counted at all, is left to the commit.
    """

    kept: tuple[Kept, ...]
    now_ms: int
    expires_ms: int


class Release(Op[None], frozen=True, gc=False):
    """Give back holds without counting anything. A hold that was settled before is passed over.

    What a `Renew` has counted of one is taken back, on engines that can: a Tier server cannot.
    Also what a reservation may have taken whose answer never came: its holds are `UNPLACED` then.
    """

    holds: tuple[Hold, ...]
    now_ms: int
    is_finishing: ClassVar[bool] = True


class Record(Op[Recorded], frozen=True, gc=False):
    """Report usage that has happened: added (levels: set), or with ``clobber`` the whole usage of that billing period.

    Never refused for being over the limit. ``at_ms`` (None: now) must lie in a subscription of the org. Counted once
    per key; the same key with other contents is an `InvalidRequest`. Raises `OrgNotFound`, `NotEntitled`, and
    `InvalidRequest` for an on/off feature. An org that never had a phase gets ``default_plan`` first. ``note`` is for
    the ledger.
    """

    org: str
    feature: str
    n: int
    key: str
    now_ms: int
    at_ms: int | None = None
    clobber: bool = False
    default_plan: str | None = None
    note: str = ""
    is_finishing: ClassVar[bool] = True


class Adjust(Op[Recorded], frozen=True, gc=False):
    """Correct the usage of the current billing period by ``delta`` units; never below 0. Counted once per key.

    Raises as `Record` does. ``note`` says why, for the ledger.
    """

    org: str
    feature: str
    delta: int
    key: str
    now_ms: int
    note: str = ""
    is_finishing: ClassVar[bool] = True


class Check(Op[Checked], frozen=True, gc=False):
    """Whether n units would be granted now. Holds nothing; an org that never had a phase gets ``default_plan``."""

    org: str
    demand: Demand
    now_ms: int
    default_plan: str | None = None


class LookUp(Op["tuple[Usage, ...]"], frozen=True, gc=False):
    """All usage of an org in its current phase, by feature name. Raises `OrgNotFound`. Changes nothing."""

    org: str
    now_ms: int


class ReadHistory(Op[History], frozen=True, gc=False):
    """What changed the usage of an org's feature from ``since_ms`` up to, not including, ``until_ms`` (None: all).

    The ledger's entries (`tier_middleware.ledger.entries_in`), or with ``step_ms`` their sums (``sums_in``). Each
    commit that found its hold, and each record and adjustment whose key was new, has left one, atomically with the
    count itself. What was recorded longer ago than the engine keeps entries may be one sum for each UTC day. Raises
    `OrgNotFound`, and `InvalidRequest` for more than one answer holds.
    """

    org: str
    feature: str
    now_ms: int
    since_ms: int | None = None
    until_ms: int | None = None
    step_ms: int | None = None


class ReadChanges(Op[Changes], frozen=True, gc=False):
    """Whose limits have changed since a cursor: by a schedule, a default plan, a deletion or an import.

    ``since`` is the cursor of an earlier answer; None: nobody's, and from where to go on. What is committed after an
    answer is in one that is asked for with its cursor, whoever committed first; an org may be named again. A cursor of
    another database, more orgs than one answer names, a deletion and an import are ``is_everything``. A phase that
    begins when its time comes is no change.
    """

    since: str | None = None


class LookUpKeys(Op["tuple[bool, ...]"], frozen=True, gc=False):
    """Which keys have counted. Changes nothing. ``org`` says by which clock they age."""

    org: str
    keys: tuple[str, ...]
    now_ms: int


class LookUpPhases(Op[PhasesInfo], frozen=True, gc=False):
    """The org's current phase and those that are to come. Raises `OrgNotFound`."""

    org: str
    now_ms: int


class Schedule(Op[None], frozen=True, gc=False):
    """Replace an org's pending phases; makes the org known. `InvalidRequest` for a plan or feature not in the model.

    From here on the org's present is not before ``now_ms``: an operation that read the clock a moment earlier and had
    to wait meets what it waited for, rather than an org that is not subscribed yet. With ``must_exist`` an unknown org
    is `OrgNotFound`. With ``keeps_pending`` what is pending stays up to the first of ``phases``, save for a
    cancellation that would come right before it: so a cancellation shortens a schedule instead of replacing it.
    """

    org: str
    phases: tuple[PlannedPhase, ...]
    now_ms: int
    must_exist: bool = False
    keeps_pending: bool = False


class Describe(Op[OrgRecord], frozen=True, gc=False):
    """What is known of an org. Raises `OrgNotFound`."""

    org: str


class UpdateOrg(Op[None], frozen=True, gc=False):
    """Change what is known of an org, as `tier_middleware.orginfo.updated` does (and raises); makes the org known."""

    org: str
    info: OrgInfo
    now_ms: int


class LookUpPaymentMethods(Op["tuple[Mapping[str, Any], ...]"], frozen=True, gc=False):
    """An org's payment methods as the payment provider has them; none where nobody takes payments. `OrgNotFound`."""

    org: str


class Checkout(Op[str], frozen=True, gc=False):
    """The address of a page on which an org pays, for ``features`` or to leave a payment method. Of engines in
    front of a server. ``tax`` is Tier's, as it is: ``{"automatic": True, "collect_id": True}``.
    """

    org: str
    success_url: str
    features: tuple[FeaturePlan, ...] = ()
    trial_days: int = 0
    cancel_url: str | None = None
    require_billing_address: bool = False
    tax: Mapping[str, Any] | None = None


class DeleteOrg(Op[None], frozen=True, gc=False):
    """Forget an org, all its usage and its ledger. Raises `OrgNotFound`. Its open holds are then settled."""

    org: str
    is_finishing: ClassVar[bool] = True


class Push(Op["tuple[PushResult, ...]"], frozen=True, gc=False):
    """Store the plans of a model. A stored plan with other content is a `PricingError`, and then nothing is stored."""

    model: Model
    now_ms: int


class Pull(Op[Model], frozen=True, gc=False):
    """All plans that were ever pushed."""


class Identify(Op[EngineInfo], frozen=True, gc=False):
    """Which engine this is."""


class MakeClock(Op[ClockRecord], frozen=True, gc=False):
    """Make a test clock that stands at a moment. One with this id is answered as it is."""

    id: str
    name: str
    present_ms: int


class AdvanceClock(Op[ClockRecord], frozen=True, gc=False):
    """Move a test clock forwards. `InvalidRequest` for backwards, for the moment that it is, and for an unknown id."""

    id: str
    present_ms: int


class LookUpClock(Op[ClockRecord], frozen=True, gc=False):
    """A test clock as it is now. `InvalidRequest` for an unknown id."""

    id: str
    is_finishing: ClassVar[bool] = True  # a settlement under a clock begins with it


class UnderClock(Op[R], frozen=True):
    """An operation in the time of a test clock: what ``make`` makes of its present.

    `tier_middleware.flow.do` asks the clock and performs what is made; drivers and engines never see it.
    """

    clock: str
    make: Callable[[int], Op[R]]


class Pause(Op[None], frozen=True, gc=False):
    """Wait before the next operation."""

    seconds: float
    is_for_driver: ClassVar[bool] = True


class Elsewhere(Op[None], frozen=True):
    """Write to something else than the engine: ``attempt`` does it at once, or raises `Busy` having done nothing, and
    the driver waits as for an engine. Where it raises `OnLoop`, ``host`` (`tier_middleware.engines.Hosted`) has a
    thread for it.
    """

    attempt: Callable[[], None]
    host: Any = None
    is_finishing: ClassVar[bool] = True
    is_for_driver: ClassVar[bool] = True


class Ask(Op[Any], frozen=True):
    """Call a function of the application, sync or async, and answer what it returns. What it raises passes through."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    is_for_driver: ClassVar[bool] = True

"""What is on the wire, as structs: they check what is asked, and document it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

from msgspec import Meta, Struct

from ..names import MAX_NAME, MAX_UNITS
from ..ops import UNPLACED
from ..policy import Reason
from ..wire_types import Feature, Org, Time, Units

__all__ = [
    "CHANGES",
    "EXTENSIONS_HEADER",
    "MAX_AT_ONCE",
    "RESERVE",
    "AdjustBody",
    "ChangesAnswer",
    "ChangesQuery",
    "CheckAnswer",
    "CheckBody",
    "CommitBody",
    "CommittedAnswer",
    "CommittedForm",
    "DemandForm",
    "GrantedForm",
    "HoldForm",
    "KeptForm",
    "KeysAnswer",
    "KeysBody",
    "RecordedAnswer",
    "ReleaseBody",
    "RenewBody",
    "ReportForm",
    "ReportResult",
    "ReportsAnswer",
    "ReportsBody",
    "ReserveAnswer",
    "ReserveBody",
    "ShortfallForm",
    "UsageAnswer",
    "UsageForm",
    "UsageQuery",
    "WireFault",
]

EXTENSIONS_HEADER: Final = "tier-extensions"
RESERVE: Final = "reserve"
CHANGES: Final = "changes"

MAX_DEMANDS: Final = 100
MAX_AT_ONCE: Final = 500  # holds or reports of one request
MAX_WAIT_SECONDS: Final = 30.0  # of a question for changes
MAX_RESERVATION_SECONDS: Final = 30 * 86_400
DEFAULT_RESERVATION_SECONDS: Final = 900.0
MAX_CURSOR: Final = 5_000  # characters, of 12 bytes each in an address at most: servers read 64 KiB of a head
# Of these an address can hold so many: others would make it longer than servers read. Its end is said so that a newline
# before it is no end, neither to Python nor to readers of the schema.
CURSOR: Final = r"^[!-~]*(?![\s\S])"

Id = Annotated[int, Meta(ge=1, le=MAX_UNITS, description="A number that the client chooses at random, used once")]
Plan = Annotated[str, Meta(examples=["plan:free@1"], description="Of an org that never had one")]
Key = Annotated[
    str, Meta(min_length=1, max_length=MAX_NAME, description="Makes it count once, however often it is sent")
]
Note = Annotated[str, Meta(max_length=MAX_NAME, description="For the ledger")]
Seconds = Annotated[float, Meta(gt=0, le=MAX_RESERVATION_SECONDS)]
Place = Annotated[int, Meta(ge=UNPLACED, le=MAX_UNITS, description="As /v1/reserve answered it; -1: not known")]

# ---- asked ----------------------------------------------------------------------------------------------------------


class DemandForm(Struct, forbid_unknown_fields=True):
    feature: Feature
    n: Units
    is_given: bool = True


class ReserveBody(Struct, forbid_unknown_fields=True):
    """Capacity for all demands or for none; each has an id of its own. The same ids again are the same reservation."""

    org: Org
    demands: Annotated[list[DemandForm], Meta(min_length=1, max_length=MAX_DEMANDS)]
    ids: Annotated[list[Id], Meta(min_length=1, max_length=MAX_DEMANDS)]
    reservation_seconds: Seconds = DEFAULT_RESERVATION_SECONDS
    default_plan: Plan | None = None


class HoldForm(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A hold; one whose reservation had no answer is found by its id."""

    org: Org
    feature: Feature
    id: Id
    place: Place = UNPLACED


class KeptForm(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """``n`` units of a hold are to be counted; ``held`` is what was granted, where that is known. With a ``key`` they
    count once for it, whichever hold they are of.
    """

    org: Org
    feature: Feature
    id: Id
    n: Units
    place: Place = UNPLACED
    held: Units = 0
    is_capped: bool = False
    key: Annotated[str, Meta(max_length=MAX_NAME)] = ""


class CommitBody(Struct, forbid_unknown_fields=True):
    """Work that was done: each hold counts once, also after it has expired, and gives back what is left of it."""

    kept: Annotated[list[KeptForm], Meta(min_length=1, max_length=MAX_AT_ONCE)]


class RenewBody(Struct, forbid_unknown_fields=True):
    """Holds that are still worked with; ``n`` is what was used so far."""

    kept: Annotated[list[KeptForm], Meta(min_length=1, max_length=MAX_AT_ONCE)]
    reservation_seconds: Seconds = DEFAULT_RESERVATION_SECONDS


class ReleaseBody(Struct, forbid_unknown_fields=True):
    """Holds of which nothing is to be counted."""

    holds: Annotated[list[HoldForm], Meta(min_length=1, max_length=MAX_AT_ONCE)]


class AdjustBody(Struct, forbid_unknown_fields=True):
    """A correction of the current billing period, up or down; never below 0."""

    org: Org
    feature: Feature
    delta: Annotated[int, Meta(ge=-MAX_UNITS, le=MAX_UNITS)]
    key: Key
    note: Note = ""


class ReportForm(Struct, forbid_unknown_fields=True, omit_defaults=True):
    org: Org
    feature: Feature
    n: Units
    key: Key
    at: Time | None = None
    clobber: bool = False
    default_plan: Plan | None = None
    note: Note = ""


class ReportsBody(Struct, forbid_unknown_fields=True):
    """Usage that has happened. Each report has its own key, and its own result."""

    reports: Annotated[list[ReportForm], Meta(min_length=1, max_length=MAX_AT_ONCE)]


class CheckBody(Struct, forbid_unknown_fields=True):
    """Whether n units would be granted now; nothing is held."""

    org: Org
    feature: Feature
    n: Units = 1
    is_given: bool = True
    default_plan: Plan | None = None


class KeysBody(Struct, forbid_unknown_fields=True):
    """Keys of commits and reports."""

    org: Org
    keys: Annotated[list[Annotated[str, Meta(max_length=MAX_NAME)]], Meta(min_length=1, max_length=MAX_AT_ONCE)]


class UsageQuery(Struct, forbid_unknown_fields=True):
    org: Org


class ChangesQuery(Struct, forbid_unknown_fields=True):
    """``since`` is the ``cursor`` of an earlier answer; without it the answer is only from where to go on."""

    since: Annotated[str, Meta(max_length=MAX_CURSOR, pattern=CURSOR)] = ""
    wait: Annotated[float, Meta(ge=0, le=MAX_WAIT_SECONDS, description="Seconds to wait for a change")] = 0.0


# ---- answered -------------------------------------------------------------------------------------------------------


class GrantedForm(Struct):
    """A hold; ``n`` is 0 for a level, which holds nothing."""

    id: int
    n: int
    place: int


class ShortfallForm(Struct):
    """The definite no, and the numbers behind it; ``limit`` null is unlimited."""

    org: str
    feature: str
    requested: int
    used: int
    reserved: int
    limit: int | None
    reason: Reason
    code: str
    resets_at: datetime | None = None


class ReserveAnswer(Struct, omit_defaults=True):
    """Either ``granted``, with null for each on/off feature, or ``shortfall``."""

    granted: list[GrantedForm | None] | None = None
    shortfall: ShortfallForm | None = None


class CommittedForm(Struct):
    """Units that passed the limit, units that a cap left out, and whether the hold had expired."""

    over: int = 0
    capped: int = 0
    has_expired: bool = False


class CommittedAnswer(Struct):
    """In the order of ``kept``. A hold that was settled before is passed over."""

    committed: list[CommittedForm]


class RecordedAnswer(Struct):
    """Units that passed the limit; ``is_new`` false: its key was known, and nothing was counted."""

    over: int = 0
    is_new: bool = True


class WireFault(Struct):
    """An error as it is on the wire; ``status`` is what the answer to it alone would have."""

    status: int
    code: str
    message: str


class ReportResult(Struct, omit_defaults=True):
    over: int = 0
    is_new: bool = True
    error: WireFault | None = None


class ReportsAnswer(Struct):
    """In the order of ``reports``."""

    results: list[ReportResult]


class UsageForm(Struct):
    """``limit`` null is unlimited; an on/off feature shows ``used`` 1 of that. ``reserved`` is held by open holds."""

    feature: str
    used: int
    limit: int | None
    reserved: int = 0
    resets_at: datetime | None = None


class UsageAnswer(Struct):
    org: str
    usage: list[UsageForm]


class CheckAnswer(Struct):
    """``shortfall`` null: they would be granted."""

    usage: UsageForm
    shortfall: ShortfallForm | None = None


class KeysAnswer(Struct):
    """Whether each has counted, in the order of ``keys``."""

    have_counted: list[bool]


class ChangesAnswer(Struct):
    """Whose limits have changed; with ``is_everything`` anybody's may have."""

    cursor: str
    orgs: list[str]
    is_everything: bool = False

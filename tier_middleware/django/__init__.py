"""The face for Django: sync and async projects, function and class-based views.

``INSTALLED_APPS += ["tier_middleware.django"]``, ``MIDDLEWARE += ["tier_middleware.django.TierMiddleware"]``, and
``TIER = {...}`` in the settings. `sync_tier` and `tier` are the project's clients, as ``TIER`` sets them up.

A request gets its context in ``middleware``, is let through by the gates (``decorator``, ``views``, ``drf``,
``routes``), and settled in ``leaving``, or in its view's transaction in ``transactions``. ``engine`` is ``django://``,
with ``sql`` and ``models``. ``project`` reads the settings, and ``checks`` says what is wrong in them.
"""

from ..context import FeatureUsage, TierContext
from ..refusal import Refusal
from ..requirement import Requirement
from ..untrusted import org_from_untrusted_header
from .decorator import requires_feature
from .middleware import TierMiddleware
from .project import sync_tier, tier
from .views import RequiresFeatureMixin

__all__ = [
    "FeatureUsage",
    "Refusal",
    "Requirement",
    "RequiresFeatureMixin",
    "TierContext",
    "TierMiddleware",
    "org_from_untrusted_header",
    "requires_feature",
    "sync_tier",
    "tier",
]

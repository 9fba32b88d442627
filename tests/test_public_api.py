"""The public surface is a list, and importing it is cheap."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from typing import Any

import pytest

import tier_middleware

PUBLIC = {
    "tier_middleware": {
        "Answer", "AsyncAnswer", "AsyncTier", "ConfigurationError", "EngineUnavailable", "InvalidRequest",
        "LimitReached", "ManualClock", "NO_ORG", "NotEntitled", "OrgNotFound", "PricingError", "Refused", "Tier",
        "TierError", "UNMETERED", "Usage", "UsageLost", "sync_tier", "tier",
    },
    "tier_middleware.asgi": {
        "FeatureUsage", "Refusal", "Requirement", "TierContext", "TierMiddleware", "org_from_untrusted_header",
        "requires_feature",
    },
    "tier_middleware.django": {
        "FeatureUsage", "Refusal", "Requirement", "RequiresFeatureMixin", "TierContext", "TierMiddleware",
        "org_from_untrusted_header", "requires_feature", "sync_tier", "tier",
    },
    "tier_middleware.django.drf": {"HasFeature"},
    "tier_middleware.fastapi": {
        "RefusedHTTPException", "RequiresFeature", "TierMiddleware", "gated_generator", "requires_feature",
    },
    "tier_middleware.server": {"TierServer"},
}  # fmt: skip

CALLS = {
    "adjust", "can", "cancel", "checkout", "counts", "delete_org", "export", "forget", "history", "load",
    "lookup_limit", "lookup_limits", "lookup_org", "lookup_payment_methods", "lookup_phase", "lookup_phases", "on",
    "on_clock", "open", "pull", "pull_latest", "push", "report", "reserve", "run", "schedule", "subscribe",
    "update_org", "whoami", "whois", "with_clock",
}  # fmt: skip


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh process has after a statement, and had not before."""
    program = f"import sys; before = set(sys.modules); {statement}; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout.replace("'", '"'))}


@pytest.mark.parametrize("module", PUBLIC)
def test_the_names(module: str) -> None:
    found = importlib.import_module(module)
    assert set(found.__all__) == PUBLIC[module]
    assert len(found.__all__) == len(set(found.__all__))


@pytest.mark.parametrize("module", ["tier_middleware.asgi", "tier_middleware.django", "tier_middleware.fastapi"])
def test_every_name_is_there(module: str) -> None:
    found = importlib.import_module(module)
    assert all(getattr(found, name) is not None for name in found.__all__)


def test_every_name_of_the_root_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIER_BASE_URL", "memory://")
    for name in tier_middleware.__all__:
        assert getattr(tier_middleware, name) is not None
    for name in ("tier", "sync_tier"):
        vars(tier_middleware).pop(name, None)


@pytest.mark.parametrize(("kind", "own"), [("Tier", {"close"}), ("AsyncTier", {"aclose"})])
def test_the_calls(kind: str, own: set[str]) -> None:
    found: Any = getattr(tier_middleware, kind)
    assert {name for name in dir(found) if not name.startswith("_")} == CALLS | own


def test_the_errors_are_one_tree() -> None:
    errors = tier_middleware.errors
    tree = {name: getattr(errors, name).__bases__[0].__name__ for name in errors.__all__ if name != "TierError"}
    assert tree == {
        "ConfigurationError": "TierError",
        "PricingError": "TierError",
        "InvalidRequest": "TierError",
        "Refused": "TierError",
        "LimitReached": "Refused",
        "NotEntitled": "Refused",
        "OrgNotFound": "Refused",
        "EngineUnavailable": "TierError",
        "UsageLost": "TierError",
    }
    assert issubclass(errors.InvalidRequest, ValueError)
    assert set(errors.__all__) <= set(tier_middleware.__all__)
    assert "|-- ConfigurationError" in (errors.__doc__ or "")  # drawn


HEAVY = {"starlette", "fastapi", "django", "httpx", "httpx2", "redis", "typer", "rich", "jinja2", "pydantic", "uvicorn",
         "anyio", "trio", "asgiref", "sqlite3", "pytest", "asyncio"}  # fmt: skip


def test_importing_the_root_pulls_in_no_framework() -> None:
    loaded = loaded_by("import tier_middleware")
    assert "tier_middleware" in loaded
    assert not loaded & (HEAVY - {"asyncio"})


def test_nor_does_a_client_in_memory() -> None:
    made = "from tier_middleware import Tier; tier = Tier('memory://'); tier.open()"
    assert not loaded_by(made) & (HEAVY - {"asyncio"})


def test_the_asgi_face_needs_starlette_only() -> None:
    loaded = loaded_by("import tier_middleware.asgi")
    assert "starlette" in loaded
    assert not loaded & {"fastapi", "pydantic", "django", "httpx", "httpx2", "typer", "rich", "uvicorn"}


def test_the_server_to_mount_needs_no_server() -> None:
    loaded = loaded_by("import tier_middleware.server")
    assert {"starlette", "jinja2"} <= loaded
    assert not loaded & {"fastapi", "pydantic", "django", "httpx", "httpx2", "typer", "rich", "uvicorn"}


def test_the_django_face_needs_django_only() -> None:
    loaded = loaded_by("import tier_middleware.django")
    assert {"django", "asgiref"} <= loaded
    assert not loaded & {"rest_framework", "starlette", "fastapi", "pydantic", "httpx", "typer", "rich", "uvicorn"}


def test_importing_touches_nothing(tmp_path: Any) -> None:
    program = (
        "import threading, os; import tier_middleware; "
        "import tier_middleware.asgi, tier_middleware.django, tier_middleware.fastapi; "
        "assert threading.active_count() == 1; assert os.listdir('.') == []; "
        "assert 'tier' not in vars(tier_middleware)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_it_is_typed() -> None:
    from importlib.resources import files

    assert files("tier_middleware").joinpath("py.typed").is_file()

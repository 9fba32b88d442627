"""Settings: where they come from, and that a bad one is named, key and value, before anything is opened."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tier_middleware import AsyncTier, ConfigurationError, Tier
from tier_middleware.engine_urls import engine_for, outbox_path
from tier_middleware.engines.http import HttpEngine
from tier_middleware.engines.memory import MemoryEngine
from tier_middleware.engines.sqlite import SqliteEngine
from tier_middleware.settings import Settings, checked_on_error, settings_for

GIVEN: dict[str, Any] = {
    "base_url": None,
    "api_key": None,
    "pricing": None,
    "default_plan": None,
    "timeout": 5.0,
    "on_error": "allow",
    "reservation_seconds": 900.0,
    "flush_seconds": 10.0,
    "on_loss": None,
    "ledger_days": None,
    "outbox": None,
}
ENVIRONMENT = {
    "TIER_BASE_URL": "memory://",
    "TIER_API_KEY": "from the environment",
    "TIER_PRICING": "pricing.json",
    "TIER_DEFAULT_PLAN": "plan:free@1",
    "TIER_LEDGER_DAYS": "30",
}


def chosen(environ: dict[str, str] | None = None, **given: Any) -> Settings:
    return settings_for(environ or {}, **(GIVEN | given))


def now_ms() -> int:
    return 0


def mistake(**given: Any) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        chosen(**given)
    return caught.value


def bad_url(url: Any) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        engine_for(Settings(url), now_ms)
    assert caught.value.path == "TIER_BASE_URL"
    assert caught.value.message.startswith("TIER_BASE_URL: ")
    return caught.value


def test_nothing_need_be_set() -> None:
    settings = chosen()
    assert settings == Settings()
    assert settings.base_url == "sqlite:///tier.db"
    assert settings.timeout == 5.0
    assert settings.on_error == "allow"


def test_settings_come_from_the_environment() -> None:
    settings = chosen(ENVIRONMENT)
    assert (settings.base_url, settings.api_key) == ("memory://", "from the environment")
    assert (settings.pricing, settings.default_plan) == ("pricing.json", "plan:free@1")


def test_what_the_program_gives_wins() -> None:
    given = {"base_url": "sqlite:///a.db", "api_key": "given", "pricing": {}, "default_plan": "plan:pro@1"}
    settings = chosen(ENVIRONMENT, **given)
    assert {name: getattr(settings, name) for name in given} == given


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    assert chosen(dict.fromkeys(ENVIRONMENT, "")) == Settings()


def test_the_clients_read_the_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    for client in (Tier(), AsyncTier()):
        assert client.core.settings.base_url == "memory://"
        assert client.core.settings.default_plan == "plan:free@1"


@pytest.mark.parametrize("field", ["timeout", "reservation_seconds", "flush_seconds"])
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, "5", None, True])
def test_a_bad_number_of_seconds_is_named(field: str, value: object) -> None:
    error = mistake(**{field: value})
    assert error.path == field
    assert error.message.startswith(f"{field}: ")
    assert repr(value) in error.message


def test_for_how_many_days_the_ledger_keeps_entries() -> None:
    assert chosen().ledger_days == 400
    assert chosen(ENVIRONMENT).ledger_days == 30
    assert chosen(ENVIRONMENT, ledger_days=0).ledger_days == 0


@pytest.mark.parametrize("value", [-1, 1.5, True, "x", "-1", 36_501, "99999999"])
def test_a_bad_number_of_days_is_named(value: object) -> None:
    error = mistake(ledger_days=value)
    assert error.path == "ledger_days"
    assert repr(value) in error.message
    if isinstance(value, str):
        with pytest.raises(ConfigurationError, match="TIER_LEDGER_DAYS") as caught:
            chosen({"TIER_LEDGER_DAYS": value})
        assert repr(value) in caught.value.message


@pytest.mark.parametrize("value", ["maybe", "", None, True, 1])
def test_a_bad_on_error_is_named(value: object) -> None:
    error = mistake(on_error=value)
    assert error.path == "on_error"
    assert repr(value) in error.message


class Awaited:
    async def __call__(self, one: Any, other: Any) -> bool:
        return False


@pytest.mark.parametrize("name", ["on_error", "on_loss"])
def test_what_nobody_awaits_is_no_callable_here(name: str) -> None:
    value = Awaited()
    error = mistake(**{name: value})
    assert error.path == name
    assert repr(value) in error.message


def test_on_error_may_be_a_word_or_a_callable() -> None:
    def policy(request: Any, error: Exception) -> bool:
        return True

    for value in ("allow", "deny", policy):
        assert checked_on_error(value) is value


@pytest.mark.parametrize("value", ["drop", "", True, 1])
def test_a_bad_on_loss_is_named(value: object) -> None:
    error = mistake(on_loss=value)
    assert error.path == "on_loss"
    assert repr(value) in error.message


@pytest.mark.parametrize("plan", ["free", "plan:free", "", "feature:x@plan:free@1", 1])
def test_a_bad_default_plan_is_named(plan: object) -> None:
    error = mistake(default_plan=plan)
    assert error.path == "TIER_DEFAULT_PLAN"
    assert error.message.startswith("TIER_DEFAULT_PLAN: ")
    assert repr(plan) in error.message


def test_a_bad_default_plan_in_the_environment_is_named() -> None:
    with pytest.raises(ConfigurationError, match="TIER_DEFAULT_PLAN: must have a version, as in 'plan:free@1'"):
        chosen({"TIER_DEFAULT_PLAN": "plan:free"})


def test_a_clock_that_is_none_is_named() -> None:
    with pytest.raises(ConfigurationError, match="clock"):
        Tier("memory://", clock="now")  # type: ignore[arg-type]  # on purpose


# ---- engines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["memory://", "memory:"])
def test_memory(url: str) -> None:
    assert isinstance(engine_for(Settings(url), now_ms), MemoryEngine)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///tier.db", "{here}/tier.db"),
        ("sqlite:///data/tier.db", "{here}/data/tier.db"),
        ("sqlite:///../tier.db", "{above}/tier.db"),
        ("sqlite:////var/lib/tier.db", "/var/lib/tier.db"),
        ("sqlite:////tmp/with%20space.db", "/tmp/with space.db"),
        ("sqlite:////tmp/100%25%3F.db?synchronous=full", "/tmp/100%?.db"),
    ],
)
def test_three_slashes_are_relative_and_four_absolute(
    url: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    engine = engine_for(Settings(url), now_ms)
    monkeypatch.chdir("/")  # it is decided by where the program was then
    assert isinstance(engine, SqliteEngine)
    assert str(engine.path) == path.format(here=tmp_path, above=tmp_path.parent)


def test_naming_an_engine_opens_nothing(tmp_path: Path) -> None:
    Tier(f"sqlite:///{tmp_path}/tier.db", pricing=str(tmp_path / "no.json"), default_plan="plan:free@1")
    AsyncTier(f"sqlite:///{tmp_path}/tier.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "tier.db",
        "",
        "/tmp/tier.db",
        "sqlite",
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite://tier.db",
        "sqlite://host/tier.db",
        "sqlite:tier.db",
        "sqlite:///:memory:",
        "sqlite:///a.db#fragment",
        "sqlite:///a.db?synchronous=off",
        "sqlite:///a.db?synchronous",
        "sqlite:///a%00b.db",
        "memory://there",
        "memory:///a",
        "postgres://host/db",
        "https://",
        "http:///v1",
        "https://tier.example.com:port",
        "https://tier.example.com#fragment",
        "https://tier.example.com?ambiguous=perhaps",
        "redis://localhost",
        "rediss://localhost",
        "redis+cluster://localhost",
        "django://nowhere",
        "http://[::1",
    ],
)
def test_a_url_that_names_no_engine_is_named(url: str) -> None:
    assert repr(url) in bad_url(url).message


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///a.db?bogus=1", "'sqlite:///a.db?bogus=***'"),
        ("sqlite:///a.db?synchronous=full&key=hunter2", "?synchronous=full&key=***'"),
        ("memory://?a=1", "'memory://?a=***'"),
        ("sqlite://user:hunter2@host/x", "'sqlite://***@host/x'"),
        ("http://user:hunter2@[::1", "'http://***@[::1'"),
        ("redis://:hun/ter2@host/0", "'redis://***@host/0'"),
        ("https://user:hun@ter/2@host", "'https://***@host'"),
        ("redis:user:hunter2@host", "'***@host'"),
        ("hunter2:@host/a@b?c=d", "'***@b?c=***'"),
    ],
)
def test_what_might_be_a_secret_in_a_url_is_not_shown(url: str, shown: str) -> None:
    message = bad_url(url).message
    assert shown in message
    assert "hun" not in message


@pytest.mark.parametrize("url", [7, Path("tier.db"), b"memory://"])
def test_a_url_that_is_no_text_is_named(url: object) -> None:
    assert repr(url) in bad_url(url).message


def test_an_unknown_option_is_named() -> None:
    assert "'bogus'" in bad_url("sqlite:///a.db?bogus=1").message


def test_the_dead_cloud_is_called_dead(caplog: pytest.LogCaptureFixture) -> None:
    engine_for(Settings("https://api.tier.run"), now_ms)
    assert "gone for good" in caplog.text
    assert "sqlite:///tier.db" in caplog.text


# ---- Tier servers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("https://tier.example.com", "https://tier.example.com"),
        ("https://tier.example.com:8443/api/?ambiguous=drop", "https://tier.example.com:8443/api"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_a_url_of_a_server(url: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    engine = engine_for(Settings(url, api_key="key"), now_ms)
    assert isinstance(engine, HttpEngine)
    assert engine.base_url == server
    assert engine.outbox.path == tmp_path / "tier-outbox.db"
    assert list(tmp_path.iterdir()) == []  # nothing is opened yet


def test_a_key_is_not_sent_where_everybody_could_read_it() -> None:
    engine_for(Settings("http://tier.example.com"), now_ms)
    with pytest.raises(ConfigurationError, match="https://") as caught:
        engine_for(Settings("http://tier.example.com", api_key=SECRET), now_ms)
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigurationError, match="TIER_API_KEY") as caught:
        engine_for(Settings("https://tier.example.com", api_key=SECRET + "\n"), now_ms)
    assert SECRET not in str(caught.value)


def test_where_the_outbox_is(tmp_path: Path) -> None:
    assert chosen(environ={"TIER_OUTBOX": "a.db"}).outbox == "a.db"
    assert chosen(environ={"TIER_OUTBOX": "a.db"}, outbox=tmp_path / "b.db").outbox == tmp_path / "b.db"
    for wrong in (7, "a\0b"):
        with pytest.raises(ConfigurationError, match="TIER_OUTBOX"):
            chosen(outbox=wrong)


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        ("sqlite:///tier.db", "tier-outbox.db"),
        ("sqlite:///data/shop?synchronous=full", "data/shop-outbox"),
        ("sqlite:///a%20b/x.y.sqlite3", "a b/x.y-outbox.sqlite3"),
        ("https://tier.example.com", "tier-outbox.db"),
        ("django://default", "tier-outbox.db"),
    ],
)
def test_it_is_beside_the_database(
    base_url: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert outbox_path(chosen(base_url=base_url)) == tmp_path / expected
    assert outbox_path(chosen(base_url=base_url, outbox="b.db")) == tmp_path / "b.db"


def test_what_a_server_last_said_holds_for_servers_only() -> None:
    assert chosen(on_error="stale").on_error == "stale"
    with pytest.raises(ConfigurationError, match="stale"):
        Tier("memory://", on_error="stale")


# ---- secrets --------------------------------------------------------------------------------------------------------

SECRET = "s3cret-of-mine"


def test_an_api_key_is_never_shown() -> None:
    settings = chosen(base_url="memory://", api_key=SECRET)
    assert settings.api_key == SECRET
    assert SECRET not in repr(settings)
    assert SECRET not in repr(Tier("memory://", SECRET))
    assert SECRET not in repr(AsyncTier("memory://", api_key=SECRET))


@pytest.mark.parametrize(
    "url", ["https://{}@example.com", "redis://user:{}@localhost/0", "ftp://u:{}@h", "rediss://:{}@h:6379"]
)
def test_a_password_in_a_url_is_never_shown(url: str) -> None:
    message = bad_url(url.format(SECRET)).message
    assert SECRET not in message
    assert "***@" in message

"""``settings.TIER``: what it sets up, what wins, and what ``manage.py check`` says of it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
import django_project
import pytest
from counting import guard
from django.conf.urls.i18n import i18n_patterns
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import include, path, re_path, reverse_lazy
from django.utils import translation

import tier_middleware
from tier_middleware import ConfigurationError, Tier
from tier_middleware.django import TierMiddleware, requires_feature, sync_tier
from tier_middleware.django.checks import check_settings
from tier_middleware.django.project import given_settings, project_of
from tier_middleware.engine_urls import outbox_path

PRICING: dict[str, Any] = {"plans": {"plan:free@1": {"features": {"feature:convert": {"tiers": [{"upto": 2}]}}}}}
MEMORY = {"BASE_URL": "memory://", "PRICING": PRICING, "DEFAULT_PLAN": "plan:free@1", "ORG": guard}


def two_arguments(request: HttpRequest, more: Any) -> str:
    return "acme"


@requires_feature("feature:convert")
def view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.tier.org)


@pytest.fixture(autouse=True)
def _urls() -> Iterator[None]:
    django_project.change(ROOT_URLCONF=django_project.urls([path("", view, name="home")]))
    yield
    django_project.change(TIER={"BASE_URL": "memory://"})


def visit() -> int:
    return Client(headers={"x-org": "acme"}).get("/").status_code


def test_the_outbox_is_beside_the_project_or_the_database(tmp_path: Path) -> None:
    remote = {"BASE_URL": "http://127.0.0.1:1", "ON_ERROR": "stale", "ORG": guard}
    with override_settings(BASE_DIR=tmp_path):
        assert project_of(remote).core.settings.outbox == tmp_path / "tier-outbox.db"
        ours = project_of({**remote, "OUTBOX": "reports.db"})
        beside = project_of({"BASE_URL": "sqlite:///data/tier.db", "ORG": guard})
    assert ours.core.settings.outbox == tmp_path / "reports.db"
    assert outbox_path(beside.core.settings) == tmp_path / "data" / "tier-outbox.db"
    assert ours.core.settings.on_error == "stale"


def test_override_settings_begins_anew() -> None:
    with override_settings(TIER=MEMORY):
        assert [visit(), visit(), visit()] == [200, 200, 429]  # no plan gives more
        assert sync_tier.lookup_limit("org:acme", "feature:convert").used == 2
        first = sync_tier.core
    with override_settings(TIER={**MEMORY, "UPGRADE_URL": "/pricing/"}):
        assert not first.is_open
        assert visit() == 200
        assert sync_tier.lookup_limit("org:acme", "feature:convert").used == 1
        browser = Client(headers={"x-org": "acme", "accept": "text/html"})
        assert [browser.get("/").status_code for _ in range(2)] == [200, 303]
        assert browser.get("/").headers["location"] == "/pricing/"


def test_a_database_is_in_the_folder_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a project with % and ü"
    folder.mkdir()
    (folder / "pricing.json").write_text(
        '{"plans": {"plan:free@1": {"features": {"feature:convert": {"tiers": [{}]}}}}}'
    )
    for given, environ in (
        ({"BASE_URL": "sqlite:///of-setting.db", "PRICING": "pricing.json"}, {}),
        ({}, {"TIER_BASE_URL": "sqlite:///of-environment.db?synchronous=full", "TIER_PRICING": "pricing.json"}),
        ({"PRICING": Path("pricing.json")}, {}),
    ):
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        with override_settings(TIER={"DEFAULT_PLAN": "plan:free@1", "ORG": guard, **given}, BASE_DIR=folder):
            assert visit() == 200
    assert {file.name for file in folder.glob("*.db")} == {"of-setting.db", "of-environment.db"}
    for name in environ:
        monkeypatch.delenv(name)


def test_the_default_is_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIER_BASE_URL", raising=False)
    with override_settings(TIER={}, BASE_DIR=tmp_path):
        sync_tier.push(PRICING)
    assert (tmp_path / "tier.db").exists()


def test_an_absolute_path_stays(tmp_path: Path) -> None:
    with override_settings(BASE_DIR=tmp_path / "elsewhere"):
        made = project_of({"BASE_URL": f"sqlite:///{tmp_path}/tier.db"})
    assert made.core.settings.base_url == f"sqlite:///{tmp_path}/tier.db"


def test_settings_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BASE_URL", "ftp://no"), ("DEFAULT_PLAN", "plan:other@1"), ("PRICING", "/no/such.json")):
        monkeypatch.setenv(f"TIER_{name}", value)
    with override_settings(TIER=MEMORY):
        assert visit() == 200
    with pytest.raises(ConfigurationError, match=r"^TIER_BASE_URL: .*'ftp://no'"):
        project_of({})


def test_options_of_tier_are_passed_on() -> None:
    made = project_of(
        {"BASE_URL": "memory://", "TIMEOUT": 2, "RESERVATION_SECONDS": 60, "ON_LOSS": "fail", "API_KEY": "x"}
    )
    settings = made.core.settings
    assert (settings.timeout, settings.reservation_seconds, settings.on_loss, settings.api_key) == (
        2.0,
        60.0,
        "fail",
        "x",
    )


def test_the_process_has_one_client_whatever_it_is_called() -> None:
    program = (
        "from django.conf import settings; import django; settings.configure("
        "INSTALLED_APPS=['tier_middleware.django'], TIER={'BASE_URL': 'memory://', 'PRICING': "
        "{'plans': {'plan:free@1': {'features': {'feature:x': {'tiers': [{}]}}}}}}); django.setup(); "
        "import tier_middleware, tier_middleware.django as ours; "
        "tier_middleware.sync_tier.subscribe('org:a', 'plan:free@1'); "
        "assert tier_middleware.tier is ours.tier; assert ours.sync_tier.can('org:a', 'feature:x').ok"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_module_that_is_imported_before_the_apps_has_the_projects_clients(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "__init__.py").write_text("from tier_middleware import sync_tier, tier\n")
    program = (
        "from django.conf import settings; import django; settings.configure("
        "INSTALLED_APPS=['shop', 'tier_middleware.django'], TIER={'BASE_URL': 'memory://', 'PRICING': "
        "{'plans': {'plan:free@1': {'features': {'feature:x': {'tiers': [{}]}}}}}}); django.setup(); "
        "import shop, tier_middleware; "
        "shop.sync_tier.subscribe('org:a', 'plan:free@1'); "
        "assert tier_middleware.sync_tier.can('org:a', 'feature:x').ok; "
        "assert shop.tier.core is shop.sync_tier.core is tier_middleware.tier.core"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["shop"]


def test_nothing_else_is_made_up_by_the_clients() -> None:
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        sync_tier.nothing_of_the_kind  # type: ignore[attr-defined]  # noqa: B018
    assert isinstance(tier_middleware.sync_tier, Tier)


MISTAKES = [
    ({"BASE_ULR": "memory://"}, r"TIER\['BASE_ULR'\]: unknown key; did you mean 'BASE_URL'"),
    ({"WHATEVER": 1}, r"TIER\['WHATEVER'\]: unknown key; known: BASE_URL, "),
    ({"BASE_URL": "ftp://x"}, r"TIER\['BASE_URL'\]: must begin with 'sqlite:///'.*'ftp://x'"),
    ({"BASE_URL": "redis://x"}, r"TIER\['BASE_URL'\]: this version has no redis engine"),
    ({"BASE_URL": 7}, r"TIER\['BASE_URL'\]: must be a text.*7"),
    ({"TIMEOUT": "5"}, r"TIER\['TIMEOUT'\]: must be a number of seconds.*'5'"),
    ({"DEFAULT_PLAN": "free"}, r"TIER\['DEFAULT_PLAN'\]: .*'free'"),
    ({"ON_ERROR": "close"}, r"TIER\['ON_ERROR'\]: 'close' cannot be imported.*'allow' or 'deny'"),
    ({"ON_ERROR": 3}, r"TIER\['ON_ERROR'\]: must be 'allow', 'deny' or a sync callable.*3"),
    ({"ON_LOSS": 3}, r"TIER\['ON_LOSS'\]: must be None, 'fail' or"),
    ({"ORG": "no.such.module"}, r"TIER\['ORG'\]: 'no.such.module' cannot be imported"),
    ({"ORG": 3}, r"TIER\['ORG'\]: must be a callable, got 3"),
    ({"UPGRADE_URL": "javascript:x"}, r"TIER\['UPGRADE_URL'\]: must be a path or an http\(s\) URL, got 'javascript:x'"),
    ({"TIER": 3}, r"TIER\[\"TIER\"\]: must be a Tier or an AsyncTier, got 3"),
    ({"TIER": Tier("memory://"), "TIMEOUT": 3}, r"TIER\[\"TIMEOUT\"\]: the client .* has options of its own"),
    ({"ROUTES": {"/x/": "x"}}, r"TIER\['ROUTES'\]\['/x/'\]: .*'x'"),
    ({"ROUTES": {"POTS /x/": "feature:x"}}, r"\['POTS /x/'\]: 'POTS' is no HTTP method; did you mean 'POST'"),
    (["BASE_URL"], r"TIER: must be a dict of options, got \['BASE_URL'\]"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES)
def test_a_mistake_is_named_with_its_key_and_value(given: Any, message: str) -> None:
    with override_settings(TIER=given):
        with pytest.raises(ConfigurationError, match=message):
            project_of(given_settings())
        assert "tier_middleware.E001" in [found.id for found in check_settings(None)]


@pytest.mark.parametrize("key", ["API_KEY", "BASE_URL"])
def test_no_secret_is_shown(key: str) -> None:
    with override_settings(TIER={"TIER": Tier("memory://"), key: "postgresql://ann:s3cr3t@db/tier"}):
        (found,) = check_settings(None)
    assert key in found.msg
    assert "s3cr3t" not in found.msg


def test_a_dotted_path_is_imported() -> None:
    made = project_of({"BASE_URL": "memory://", "ORG": "counting.guard", "ON_REFUSED": f"{__name__}.two_arguments"})
    assert made.options.org is guard
    assert made.options.on_refused is two_arguments


class OwnMiddleware(TierMiddleware):
    pass


AUTH = "django.contrib.auth.middleware.AuthenticationMiddleware"
OURS = "tier_middleware.django.TierMiddleware"
OTHER = "django.middleware.common.CommonMiddleware"


@pytest.mark.parametrize(
    ("middleware", "ids"),
    [
        ([AUTH, OURS], []),
        ([OTHER, OURS], []),
        ([AUTH], ["tier_middleware.E002"]),
        ([OURS, AUTH], ["tier_middleware.E003"]),
        ([AUTH, OURS, OTHER], ["tier_middleware.W004"]),
        ([AUTH, "tier_middleware.django.middleware.TierMiddleware"], []),
        ([AUTH, f"{__name__}.OwnMiddleware"], []),
        ([f"{__name__}.OwnMiddleware", AUTH], ["tier_middleware.E003"]),
        (["no.such.Middleware", AUTH], ["tier_middleware.E002"]),
    ],
)
def test_the_place_of_the_middleware_is_checked(middleware: list[str], ids: list[str]) -> None:
    with override_settings(MIDDLEWARE=middleware, TIER=MEMORY):
        found = check_settings(None)
    assert [one.id for one in found] == ids
    assert all("Middleware" in one.msg for one in found)


@pytest.mark.parametrize(
    ("given", "id", "message"),
    [
        ({"ORG": two_arguments}, "tier_middleware.E005", r"TIER\['ORG'\]: must be a callable of \(request\)"),
        (
            {"ON_REFUSED": guard},
            "tier_middleware.E005",
            r"TIER\['ON_REFUSED'\]: must be a callable of \(request, refusal",
        ),
        ({"PRICING": "/no/such.json"}, "tier_middleware.E006", r"TIER\['PRICING'\]: .*cannot read '/no/such.json'"),
        ({"PRICING": {"plans": {"free": {}}}}, "tier_middleware.E006", r"TIER\['PRICING'\]: .*free"),
        ({"ROUTES": {"hom": "feature:x"}}, "tier_middleware.W007", r"TIER\['ROUTES'\]\['hom'\]: no URL has this name"),
        (
            {"ROUTES": {"GET /nowhere/<int:n>/": "feature:x"}},
            "tier_middleware.W008",
            r"\['/nowhere/<int:n>/'\]: no URL",
        ),
        ({"ROUTES": {"/years/<slug:year>": "feature:x"}}, "tier_middleware.W008", r"\['/years/<slug:year>'\]: no URL"),
    ],
)
def test_what_can_be_known_without_the_engine_is_checked(given: Any, id: str, message: str) -> None:
    with override_settings(TIER={**MEMORY, **given}):
        (found,) = check_settings(None)
    assert found.id == id
    assert re.search(message, found.msg)


def test_an_upgrade_page_may_be_named_before_there_are_urls() -> None:
    """As settings do, which are read first; and it is another page in each language."""
    patterns = i18n_patterns(path("pricing/", view, name="pricing"))
    urls = django_project.urls([path("", view, name="home"), *patterns])
    with override_settings(TIER={**MEMORY, "UPGRADE_URL": reverse_lazy("pricing")}, ROOT_URLCONF=urls):
        assert check_settings(None) == []
        browser = Client(headers={"x-org": "acme", "accept": "text/html"})
        assert [browser.get("/").status_code for _ in range(3)] == [200, 200, 303]
        for language in ("de", "fr"):
            with translation.override(language):
                assert browser.get("/").headers["location"] == f"/{language}/pricing/"


def test_an_upgrade_page_that_nobody_has_is_found_by_the_check() -> None:
    with override_settings(TIER={**MEMORY, "UPGRADE_URL": reverse_lazy("nowhere")}):
        (found,) = check_settings(None)
    assert found.id == "tier_middleware.E011"
    assert re.match(r"TIER\['UPGRADE_URL'\]: Reverse for 'nowhere' not found", found.msg)


CHECK = """
import sys
sys.path[:0] = sys.argv[1:3]
import django
from django.conf import settings
from django.core.management import execute_from_command_line
settings.configure(
    INSTALLED_APPS=["tier_middleware.django"],
    MIDDLEWARE=["tier_middleware.django.TierMiddleware"],
    TIER={"BASE_URL": sys.argv[3]},
    DATABASES={
        "default": {"ENGINE": "django.db.backends.sqlite3"},
        **({"other": {"ENGINE": "django.db.backends.postgresql"}} if sys.argv[3] == "django://other" else {}),
    },
)
execute_from_command_line(["manage.py", "check", "--fail-level=WARNING"])
"""


def checked_without(packages: tuple[str, ...], base_url: str, folder: Path) -> str:
    """What ``manage.py check`` says of a project in an environment that has not got these."""
    installed = Path(django.__file__).parents[1]
    for package in installed.iterdir():
        if not package.name.startswith(packages):
            (folder / package.name).symlink_to(package)
    ours = Path(tier_middleware.__file__).parents[1]
    command = [sys.executable, "-S", "-c", CHECK, str(folder), str(ours), base_url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={}, cwd=folder)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("packages", "base_url", "told"),
    [
        (
            ("httpx",),
            "https://tier.example.com",
            "['BASE_URL']: needs more packages: pip install 'tier-middleware[http]'",
        ),
        (("psycopg",), "django://other", "Error loading psycopg2 or psycopg module"),  # which Django may say first
        (("typer", "rich"), "memory://", "pip install 'tier-middleware[cli]'"),
        (("nothing",), "memory://", "no issues"),
    ],
)
def test_a_missing_extra_is_found_by_the_check(
    packages: tuple[str, ...], base_url: str, told: str, tmp_path: Path
) -> None:
    assert told in checked_without(packages, base_url, tmp_path)


def test_paths_that_have_a_url_are_not_warned_of() -> None:
    patterns = [
        path("", view, name="home"),
        path("files/<uuid:id>/", view),
        re_path(r"^years/([0-9]{4})/$", view),
        path("api/", include([path("<slug:team>/<int:n>", view)])),
    ]
    table = ("/", "GET /files/<id>/", "/files/<uuid:id>/", "/years/<int:year>/", "POST /api/<team>/<int:n>", "home")
    with override_settings(
        TIER={**MEMORY, "ROUTES": dict.fromkeys(table, "feature:convert")}, ROOT_URLCONF=django_project.urls(patterns)
    ):
        assert check_settings(None) == []


def test_checking_opens_nothing(tmp_path: Path) -> None:
    with override_settings(TIER={"BASE_URL": "sqlite:///tier.db", "ROUTES": {"home": "feature:x"}}, BASE_DIR=tmp_path):
        assert check_settings(None) == []
    assert list(tmp_path.iterdir()) == []

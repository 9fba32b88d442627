"""Template tags and management commands: what people see of it in a Django project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from counting import guard
from django.core.management import CommandError, call_command
from django.http import HttpRequest, HttpResponse
from django.template import Context, Template, TemplateSyntaxError
from django.test import AsyncClient, override_settings
from django_project import Site

from tier_middleware import NO_ORG, UNMETERED, ConfigurationError, OrgNotFound, Tier
from tier_middleware.django import requires_feature, sync_tier

BAR = """{% load tier %}{% usage "feature:convert" as u %}{{ u.used }} of {{ u.limit }}, {{ u.remaining }} left"""
PARTS = (
    """{% load tier %}{% feature "feature:sso" %}sso{% endfeature %}"""
    """{% feature name %}audit{% else %}buy{% endfeature %}"""
)


def page(text: str) -> Any:
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(Template(text).render(Context({"request": request, "name": "feature:audit"})))

    return view


def test_a_usage_bar(site: Site) -> None:
    site.serve(page(BAR))
    site.tier.subscribe("org:acme", "plan:free@1")
    site.tier.report("org:acme", "feature:convert", 3)
    assert site.get().content == b"3 of 10, 7 left"
    assert site.used() == (3, 0)


def test_a_gated_page_shows_its_own_unit_as_held(site: Site) -> None:
    site.serve(requires_feature("feature:convert")(page(BAR)))
    assert site.get().content == b"0 of 10, 9 left"


def test_parts_by_plan(site: Site) -> None:
    site.serve(page(PARTS))
    assert site.get().content == b"ssobuy"  # the first visit put it on the default plan, as a gate would
    site.tier.subscribe("org:acme", "plan:pro@1")
    assert site.get().content == b"audit"


@pytest.mark.parametrize(
    ("org", "parts", "bar"),
    [
        (None, b"buy", b"0 of 0, 0 left"),
        (NO_ORG, b"buy", b"0 of 0, 0 left"),
        (UNMETERED, b"ssoaudit", b"0 of None, None left"),
    ],
)
def test_who_has_no_org(site: Site, org: Any, parts: bytes, bar: bytes) -> None:
    for text, shown in ((PARTS, parts), (BAR, bar)):
        site.serve(page(text), ORG=lambda request: org)
        assert site.get().content == shown


def test_an_org_without_any_plan(site: Site, make_tier: Any) -> None:
    site.tier = Tier.on(make_tier(default_plan=None).core)
    site.serve(page(PARTS + BAR))
    assert site.get().content == b"buy0 of 0, 0 left"
    with pytest.raises(OrgNotFound):
        site.tier.lookup_limits("org:acme")


def test_the_engine_is_asked_once_for_a_page(site: Site) -> None:
    """Seen by what is counted while the page is rendered: the second tag shows what the first did."""

    def view(request: HttpRequest) -> HttpResponse:
        context = Context({"request": request})
        first = Template(BAR).render(context)
        site.tier.report("org:acme", "feature:convert", 1)
        return HttpResponse(f"{first}; {Template(BAR).render(context)}")

    site.serve(view)
    assert site.get().content == b"0 of 10, 10 left; 0 of 10, 10 left"
    assert site.get().content == b"1 of 10, 9 left; 1 of 10, 9 left"


async def test_in_an_async_view(site: Site) -> None:
    @requires_feature("feature:convert")
    async def gated(request: HttpRequest) -> HttpResponse:
        return page(BAR)(request)

    async def ungated(request: HttpRequest) -> HttpResponse:
        return await sync_to_async(page(BAR))(request)

    async def aguard(request: HttpRequest) -> Any:
        return guard(request)

    for view, shown in ((gated, b"0 of 10, 9 left"), (ungated, b"1 of 10, 9 left")):
        site.serve(view)
        assert (await site.aget()).content == shown
        site.serve(view, ORG=aguard)
        assert (await site.aget(org="other")).content == shown


async def test_an_async_guard_cannot_be_asked_by_a_template_on_the_event_loop(site: Site) -> None:
    async def aguard(request: HttpRequest) -> str:
        return "acme"

    async def view(request: HttpRequest) -> HttpResponse:
        return page(BAR)(request)

    site.serve(view, ORG=aguard)
    with pytest.raises(ConfigurationError, match=r"render in a thread: await sync_to_async\(render\)"):
        await AsyncClient().get("/")


@pytest.mark.parametrize(
    "text", ["{% feature %}{% endfeature %}", "{% feature 'feature:x' 'feature:y' %}{% endfeature %}"]
)
def test_a_tag_that_is_wrong(site: Site, text: str) -> None:
    with pytest.raises(TemplateSyntaxError, match="takes one feature"):
        Template("{% load tier %}" + text)


def test_a_template_without_a_request_says_what_is_missing(site: Site) -> None:
    with pytest.raises(ConfigurationError, match="has no request with a tier"):
        Template(BAR).render(Context({}))


# ---- commands -------------------------------------------------------------------------------------------------------

MANAGE = """
import sys
from django.conf import settings
from django.core.management import execute_from_command_line
settings.configure(
    BASE_DIR=__import__("pathlib").Path(sys.argv.pop(1)),
    INSTALLED_APPS=["tier_middleware.django"],
    MIDDLEWARE=["tier_middleware.django.TierMiddleware"],
    TIER={"DEFAULT_PLAN": "plan:free@1"},
)
execute_from_command_line(sys.argv)
"""
PRICING = {"plans": {"plan:free@1": {"features": {"feature:convert": {"tiers": [{"upto": 10}]}}}}}
COLOURS = ("--no-color", "--force-color")


def manage(project: Path, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIER_")}
    return subprocess.run(
        [sys.executable, "-c", MANAGE, str(project), *args],
        cwd=folder, env=kept, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_the_commands_use_the_projects_engine_from_any_folder(tmp_path: Path) -> None:
    project, folder = tmp_path / "project", tmp_path / "elsewhere"
    project.mkdir()
    folder.mkdir()
    (folder / "pricing.json").write_text(json.dumps(PRICING))
    dry = manage(project, folder, "tier_push", "--dry-run", "pricing.json", "--pythonpath", "/no")
    assert (dry.returncode, dry.stdout.split()) == (0, ["plan:free@1", "new"]), dry.stderr
    assert list(project.iterdir()) == []
    assert manage(project, folder, "tier_push", "pricing.json").stdout.split() == ["plan:free@1", "created"]
    done = manage(project, folder, "tier_report", "org:acme", "feature:convert", "3")
    assert done.returncode == 0, done.stderr
    assert "now 3 used, a limit of 10" in done.stdout  # it was put on the default plan of the settings
    shown = json.loads(manage(project, folder, "tier_limits", "org:acme", "--json").stdout)
    assert shown["usage"][0]["used"] == 3
    none = manage(project, folder, "tier_outbox", "list")
    assert (none.returncode, none.stdout) == (1, "")
    assert f"there is no outbox '{project / 'tier-outbox.db'}'" in none.stderr
    well = manage(project, folder, "tier_doctor")
    assert well.returncode == 0, well.stdout
    assert str(project / "tier.db") in well.stdout
    assert {file.name for file in folder.iterdir()} == {"pricing.json"}
    wrong = manage(project, folder, "tier_limits", "org:nobody")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("error: ")
    assert manage(project, folder, "check").returncode == 0
    plain, coloured = (manage(project, folder, "tier_doctor", option, "--skip-checks") for option in COLOURS)
    assert (plain.returncode, coloured.returncode) == (0, 0)
    assert ("\x1b[" in plain.stdout, "\x1b[" in coloured.stdout) == (False, True)


def test_a_command_called_by_a_program(tmp_path: Path) -> None:
    (tmp_path / "pricing.json").write_text(json.dumps(PRICING))
    with override_settings(TIER={"DEFAULT_PLAN": "plan:free@1"}, BASE_DIR=tmp_path):
        told = StringIO()
        call_command("tier_push", str(tmp_path / "pricing.json"), stdout=told)
        call_command("tier_report", "org:acme", "feature:convert", "2", stdout=told)
        assert told.getvalue().split()[:2] == ["plan:free@1", "created"]
        assert "now 2 used" in told.getvalue()
        with pytest.raises(CommandError, match="tier_limits ended with status 1"):
            call_command("tier_limits", "org:nobody")
        assert sync_tier.lookup_limit("org:acme", "feature:convert").used == 2  # and the process goes on


def test_bad_settings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with override_settings(TIER={"BASE_ULR": "x"}), pytest.raises(CommandError):
        call_command("tier_limits", "org:acme")
    assert capsys.readouterr().err.startswith("error: TIER['BASE_ULR']: unknown key")


def test_without_the_extra_a_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tier_middleware.cli.app", None)
    with pytest.raises(CommandError, match=r"pip install \"tier-middleware\[cli\]\""):
        call_command("tier_limits", "org:acme")

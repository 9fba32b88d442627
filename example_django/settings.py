"""The project's settings. ``EXAMPLE_FOLDER`` is where its databases are (default: the current folder).

``EXAMPLE_SECRET`` signs cookies (default: one that is made once and kept in that folder), ``EXAMPLE_HTTPS=1`` is for
behind a proxy that speaks HTTPS and says so in ``X-Forwarded-Proto``, ``EXAMPLE_HOSTS`` are the names that it answers
to, and ``EXAMPLE_ON_ERROR`` is what to do while the engine is away. ``EXAMPLE_POSTGRES`` names a PostgreSQL database to
use in place of SQLite, where libpq's own variables (``PGHOST``, ``PGUSER``, ...) lead. ``TIER_BASE_URL`` and
``TIER_PRICING`` are those of the library.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

BASE_DIR = Path(os.environ.get("EXAMPLE_FOLDER") or Path.cwd())


def _kept_secret() -> str:
    file = BASE_DIR / "secret-key"
    with suppress(FileExistsError), open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as made:
        made.write(secrets.token_urlsafe(50))
    return file.read_text()


SECRET_KEY = os.environ.get("EXAMPLE_SECRET") or _kept_secret()
ALLOWED_HOSTS = (os.environ.get("EXAMPLE_HOSTS") or "127.0.0.1,localhost").split(",")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = os.environ.get("EXAMPLE_HTTPS") == "1"
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = SECURE_SSL_REDIRECT
SECURE_HSTS_SECONDS = 3600 if SECURE_SSL_REDIRECT else 0
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if SECURE_SSL_REDIRECT else None

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "rest_framework",
    "rest_framework.authtoken",
    "tier_middleware.django",
    "example_django.labels",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "tier_middleware.django.TierMiddleware",
]
TIER = {
    "PRICING": os.environ.get("TIER_PRICING") or Path(__file__).with_name("pricing.json"),
    "DEFAULT_PLAN": "plan:free@1",  # of a team from its first day
    "ORG": "example_django.labels.teams.org_of_request",
    "UPGRADE_URL": "/plans/",
    "ON_ERROR": os.environ.get("EXAMPLE_ON_ERROR") or "allow",
}
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "rest_framework.authentication.TokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
}

ROOT_URLCONF = "example_django.urls"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": BASE_DIR / "example.db",
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL"},
    }
}
if os.environ.get("EXAMPLE_POSTGRES"):
    DATABASES["default"] = {"ENGINE": "django.db.backends.postgresql", "NAME": os.environ["EXAMPLE_POSTGRES"]}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
            ]
        },
    }
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
LOGIN_URL = "/login/"
LOGIN_REDIRECT_URL = LOGOUT_REDIRECT_URL = "/"
USE_TZ = True

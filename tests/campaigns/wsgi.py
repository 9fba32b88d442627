"""The entrance to `django_shop` for servers, whose workers say here that they are ready."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

from . import django_shop

assert django_shop  # sets Django up
application = get_wsgi_application()
print(f"worker {os.getpid()} is ready", flush=True)  # the campaigns wait for this line

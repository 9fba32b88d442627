from __future__ import annotations

from django.apps import AppConfig


class LabelsConfig(AppConfig):
    name = "example_django.labels"
    label = "labels"

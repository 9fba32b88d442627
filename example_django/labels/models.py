"""What the product keeps: usage and plans are in the engine, under the team's org."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models


class Team(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=100)

    @property
    def org(self) -> str:
        return f"org:{self.id}"


class Membership(models.Model):
    """A user's place in a team; each has one team at most."""

    class Role(models.TextChoices):
        OWNER = "owner"
        MEMBER = "member"

    user = models.OneToOneField(settings.AUTH_USER_MODEL, models.CASCADE)
    team = models.ForeignKey(Team, models.CASCADE, related_name="members")
    role = models.CharField(max_length=10, choices=Role.choices, default=Role.MEMBER)


class Label(models.Model):
    team = models.ForeignKey(Team, models.CASCADE, related_name="labels")
    address = models.CharField(max_length=200)
    bought_at = models.DateTimeField(auto_now_add=True)

"""The tables of ``django://``, which Django's migrations make: those of `tier_middleware.engines.schema`.

They are the engine's own, and so is their SQL: read them as you like, and change what they hold by `Tier`. Columns
stand in the order in which its statements name them. There are no foreign keys: rows of an org go in one transaction.
"""

from __future__ import annotations

from typing import Final

from django.db import models
from django.db.models import Q

from ..names import MAX_UNITS

__all__ = ["TABLES"]

# Both databases have this; MySQL and Oracle, where these tables are of no use and cannot be made, do not.
FEATURES: Final = ["supports_update_conflicts_with_target"]


class About(models.Model):
    id = models.SmallIntegerField(primary_key=True)
    created_ms = models.BigIntegerField()

    class Meta:
        db_table = "tier_about"
        required_db_features = FEATURES


class Plan(models.Model):
    name = models.TextField(primary_key=True)
    body = models.TextField()
    pushed_ms = models.BigIntegerField()

    class Meta:
        db_table = "tier_plans"
        required_db_features = FEATURES


class Org(models.Model):
    id = models.BigAutoField(primary_key=True)
    name = models.TextField()
    created_ms = models.BigIntegerField()
    changed_ms = models.BigIntegerField()
    info = models.TextField(db_default="")

    class Meta:
        db_table = "tier_orgs"
        required_db_features = FEATURES
        constraints = [models.UniqueConstraint(fields=["name"], name="tier_orgs_by_name")]


class Phase(models.Model):
    pk = models.CompositePrimaryKey("org_id", "effective_ms")
    org_id = models.BigIntegerField()
    effective_ms = models.BigIntegerField()
    anchor_ms = models.BigIntegerField()
    trial = models.BooleanField()
    features = models.TextField()

    class Meta:
        db_table = "tier_phases"
        required_db_features = FEATURES


class Usage(models.Model):
    """What is counted: one org, feature, plan and billing period."""

    id = models.BigAutoField(primary_key=True)
    org_id = models.BigIntegerField()
    feature = models.TextField()
    plan = models.TextField()
    start_ms = models.BigIntegerField()
    aggregate = models.TextField()

    class Meta:
        db_table = "tier_usage"
        required_db_features = FEATURES
        constraints = [
            models.UniqueConstraint(fields=["org_id", "feature", "plan", "start_ms"], name="tier_usage_by_period")
        ]


class Units(models.Model):
    """A counter (id 0), its open reservations (id > 0), and its entries of the ledger (id < 0)."""

    pk = models.CompositePrimaryKey("usage_id", "id")
    usage_id = models.BigIntegerField()
    id = models.BigIntegerField()
    n = models.BigIntegerField()
    reserved = models.BigIntegerField(db_default=0)
    limit_units = models.BigIntegerField(db_default=0)
    from_ms = models.BigIntegerField(db_default=0)
    until_ms = models.BigIntegerField(db_default=0)
    kind = models.SmallIntegerField(null=True)
    at_ms = models.BigIntegerField(null=True)
    key = models.TextField(null=True)
    level = models.BigIntegerField(null=True)
    note = models.TextField(null=True)

    class Meta:
        db_table = "tier_units"
        required_db_features = FEATURES
        constraints = [
            models.CheckConstraint(
                condition=Q(id__lt=0) | Q(n__gte=0, n__lte=MAX_UNITS), name="tier_units_n_of_a_counter"
            ),
            models.CheckConstraint(condition=Q(reserved__gte=0, reserved__lte=MAX_UNITS), name="tier_units_reserved"),
        ]


class Key(models.Model):
    key = models.TextField(primary_key=True)
    contents = models.TextField()
    expires_ms = models.BigIntegerField()

    class Meta:
        db_table = "tier_keys"
        required_db_features = FEATURES
        indexes = [models.Index(fields=["expires_ms"], name="tier_keys_by_age")]


class Clock(models.Model):
    id = models.TextField(primary_key=True)
    name = models.TextField()
    present_ms = models.BigIntegerField()

    class Meta:
        db_table = "tier_clocks"
        required_db_features = FEATURES


class ClockKey(models.Model):
    pk = models.CompositePrimaryKey("clock", "key")
    key = models.TextField()
    contents = models.TextField()
    expires_ms = models.BigIntegerField()
    clock = models.TextField()

    class Meta:
        db_table = "tier_clock_keys"
        required_db_features = FEATURES
        indexes = [models.Index(fields=["clock", "expires_ms"], name="tier_clock_keys_by_age")]


class LedgerDay(models.Model):
    pk = models.CompositePrimaryKey("usage_id", "day_ms")
    usage_id = models.BigIntegerField()
    day_ms = models.BigIntegerField()
    high = models.BigIntegerField()
    low = models.BigIntegerField()

    class Meta:
        db_table = "tier_ledger_days"
        required_db_features = FEATURES


class LedgerDue(models.Model):
    pk = models.CompositePrimaryKey("clock", "due_ms", "usage_id")
    clock = models.TextField()
    due_ms = models.BigIntegerField()
    usage_id = models.BigIntegerField()

    class Meta:
        db_table = "tier_ledger_due"
        required_db_features = FEATURES


class Change(models.Model):
    """Whose limits have changed; an empty org is everybody. ``xid`` is PostgreSQL's number of the transaction."""

    id = models.BigAutoField(primary_key=True)
    org = models.TextField()
    xid = models.BigIntegerField(db_default=0)

    class Meta:
        db_table = "tier_changes"
        required_db_features = FEATURES
        indexes = [
            models.Index(fields=["org"], name="tier_changes_by_org"),
            models.Index(fields=["xid"], name="tier_changes_by_xid"),
        ]


TABLES: Final = tuple(
    model._meta.db_table
    for model in (About, Plan, Org, Phase, Usage, Units, Key, Clock, ClockKey, LedgerDay, LedgerDue, Change)
)

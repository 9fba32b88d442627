"""The tables of ``django://``."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies: list[tuple[str, str]] = []

    operations = [
        migrations.CreateModel(
            name="About",
            fields=[
                ("id", models.SmallIntegerField(primary_key=True, serialize=False)),
                ("created_ms", models.BigIntegerField()),
            ],
            options={
                "db_table": "tier_about",
                "required_db_features": ["supports_update_conflicts_with_target"],
            },
        ),
        migrations.CreateModel(
            name="Clock",
            fields=[
                ("id", models.TextField(primary_key=True, serialize=False)),
                ("name", models.TextField()),
                ("present_ms", models.BigIntegerField()),
            ],
            options={
                "db_table": "tier_clocks",
                "required_db_features": ["supports_update_conflicts_with_target"],
            },
        ),
        migrations.CreateModel(
            name="LedgerDay",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "usage_id", "day_ms", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("usage_id", models.BigIntegerField()),
                ("day_ms", models.BigIntegerField()),
                ("high", models.BigIntegerField()),
                ("low", models.BigIntegerField()),
            ],
            options={
                "db_table": "tier_ledger_days",
                "required_db_features": ["supports_update_conflicts_with_target"],
            },
        ),
        migrations.CreateModel(
            name="LedgerDue",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "clock", "due_ms", "usage_id", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("clock", models.TextField()),
                ("due_ms", models.BigIntegerField()),
                ("usage_id", models.BigIntegerField()),
            ],
            options={
                "db_table": "tier_ledger_due",
                "required_db_features": ["supports_update_conflicts_with_target"],
            },
        ),
        migrations.CreateModel(
            name="Phase",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "org_id", "effective_ms", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("org_id", models.BigIntegerField()),
                ("effective_ms", models.BigIntegerField()),
                ("anchor_ms", models.BigIntegerField()),
                ("trial", models.BooleanField()),
                ("features", models.TextField()),
            ],
            options={
                "db_table": "tier_phases",
                "required_db_features": ["supports_update_conflicts_with_target"],
            },
        ),
        migrations.CreateModel(
            name="Plan",
            fields=[
                ("name", models.TextField(primary_key=True, serialize=False)),
                ("body", models.TextField()),
                ("pushed_ms", models.BigIntegerField()),
            ],
            options={
                "db_table": "tier_plans",
                "required_db_features": ["supports_update_conflicts_with_target"],
            },
        ),
        migrations.CreateModel(
            name="ClockKey",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "clock", "key", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("key", models.TextField()),
                ("contents", models.TextField()),
                ("expires_ms", models.BigIntegerField()),
                ("clock", models.TextField()),
            ],
            options={
                "db_table": "tier_clock_keys",
                "required_db_features": ["supports_update_conflicts_with_target"],
                "indexes": [models.Index(fields=["clock", "expires_ms"], name="tier_clock_keys_by_age")],
            },
        ),
        migrations.CreateModel(
            name="Key",
            fields=[
                ("key", models.TextField(primary_key=True, serialize=False)),
                ("contents", models.TextField()),
                ("expires_ms", models.BigIntegerField()),
            ],
            options={
                "db_table": "tier_keys",
                "required_db_features": ["supports_update_conflicts_with_target"],
                "indexes": [models.Index(fields=["expires_ms"], name="tier_keys_by_age")],
            },
        ),
        migrations.CreateModel(
            name="Org",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("name", models.TextField()),
                ("created_ms", models.BigIntegerField()),
                ("changed_ms", models.BigIntegerField()),
                ("info", models.TextField(db_default="")),
            ],
            options={
                "db_table": "tier_orgs",
                "required_db_features": ["supports_update_conflicts_with_target"],
                "constraints": [models.UniqueConstraint(fields=("name",), name="tier_orgs_by_name")],
            },
        ),
        migrations.CreateModel(
            name="Units",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "usage_id", "id", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("usage_id", models.BigIntegerField()),
                ("id", models.BigIntegerField()),
                ("n", models.BigIntegerField()),
                ("reserved", models.BigIntegerField(db_default=0)),
                ("limit_units", models.BigIntegerField(db_default=0)),
                ("from_ms", models.BigIntegerField(db_default=0)),
                ("until_ms", models.BigIntegerField(db_default=0)),
                ("kind", models.SmallIntegerField(null=True)),
                ("at_ms", models.BigIntegerField(null=True)),
                ("key", models.TextField(null=True)),
                ("level", models.BigIntegerField(null=True)),
                ("note", models.TextField(null=True)),
            ],
            options={
                "db_table": "tier_units",
                "required_db_features": ["supports_update_conflicts_with_target"],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            ("id__lt", 0), models.Q(("n__gte", 0), ("n__lte", 9223372036854775807)), _connector="OR"
                        ),
                        name="tier_units_n_of_a_counter",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("reserved__gte", 0), ("reserved__lte", 9223372036854775807)),
                        name="tier_units_reserved",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Usage",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("org_id", models.BigIntegerField()),
                ("feature", models.TextField()),
                ("plan", models.TextField()),
                ("start_ms", models.BigIntegerField()),
                ("aggregate", models.TextField()),
            ],
            options={
                "db_table": "tier_usage",
                "required_db_features": ["supports_update_conflicts_with_target"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("org_id", "feature", "plan", "start_ms"), name="tier_usage_by_period"
                    )
                ],
            },
        ),
    ]

"""Whose limits have changed."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("tier_middleware", "0001_initial")]

    operations = [
        migrations.CreateModel(
            name="Change",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("org", models.TextField()),
                ("xid", models.BigIntegerField(db_default=0)),
            ],
            options={
                "db_table": "tier_changes",
                "required_db_features": ["supports_update_conflicts_with_target"],
                "indexes": [
                    models.Index(fields=["org"], name="tier_changes_by_org"),
                    models.Index(fields=["xid"], name="tier_changes_by_xid"),
                ],
            },
        ),
    ]

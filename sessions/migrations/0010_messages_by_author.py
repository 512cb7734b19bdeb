"""An index of a person's messages by session, in place of that of the author alone.

Its field is altered without the database: SQLite would copy the table, which of a million messages
takes minutes.
"""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


def _author(apps):
    model = apps.get_model("agent_sessions", "Message")
    return model, model._meta.get_field("author")


def drop(apps, schema_editor):
    model, author = _author(apps)
    for name in schema_editor._constraint_names(model, [author.column], index=True, primary_key=False):
        schema_editor.execute(schema_editor._delete_constraint_sql(schema_editor.sql_delete_index, model, name))


def make(apps, schema_editor):
    model, author = _author(apps)
    schema_editor.execute(schema_editor._create_index_sql(model, fields=[author]))


class Migration(migrations.Migration):
    dependencies = [
        ("agent_sessions", "0009_doomed_sessions"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddIndex(
            model_name="message",
            index=models.Index(fields=["author", "chat"], name="message_by_author"),
        ),
        migrations.RunPython(drop, make),
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.AlterField(
                    model_name="message",
                    name="author",
                    field=models.ForeignKey(
                        blank=True,
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ]
        ),
    ]

"""The vault's check record: which instance keys this database has been sealed with."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _


class VaultKey(models.Model):
    """One instance key in use. `proof` is a known text sealed with exactly that key, so that a
    start can tell the right key from another one with the same id."""

    key_id = models.CharField(max_length=16, primary_key=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    proof = models.BinaryField()

    class Meta:
        app_label = "workspaces"
        verbose_name = _("vault key")
        verbose_name_plural = _("vault keys")
        ordering = ["created_at"]

    def __str__(self) -> str:
        return self.key_id

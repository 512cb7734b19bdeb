from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from workspaces import signin_link
from workspaces.models import User


class Command(BaseCommand):
    help = (
        "Prints a link that signs a person in once, within fifteen minutes: for who lost the "
        "password. No mail is needed."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("email")

    def handle(self, *args: Any, **options: Any) -> None:
        if settings.SSO_ONLY:
            raise CommandError(
                "PATCHBAY_SSO_ONLY is on, and such a link goes round it. Switch it off, restart, "
                "and ask again."
            )
        email = User.objects.normalize_email(options["email"])
        user = User.objects.filter(email=email).first()
        if user is None:
            raise CommandError(f"There is nobody with the address {email}.")
        if not user.is_active:
            raise CommandError(f"{email} is switched off: switch the account on first.")
        self.stdout.write(signin_link.make(user))

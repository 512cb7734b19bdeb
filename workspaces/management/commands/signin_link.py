from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

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
        email = User.objects.normalize_email(options["email"])
        user = User.objects.filter(email=email).first()
        if user is None:
            raise CommandError(f"There is nobody with the address {email}.")
        if not user.is_active:
            raise CommandError(f"{email} is switched off: switch the account on first.")
        self.stdout.write(signin_link.make(user))

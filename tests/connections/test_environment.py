"""The server's own key is lent to the provider's own address, and to no other."""

import pytest

from connections.targets import EnvironmentOff, target_of
from tests.builders import make_connection

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("provider_type", ["anthropic", "openai", "bedrock", "vertex"])
def test_a_row_with_an_address_gets_no_key_of_the_server(provider_type, settings, monkeypatch):
    """No form makes such a row; what is in the database all the same is not believed."""
    settings.ENVIRONMENT_AUTH = frozenset({provider_type})
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-of-the-server-1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-server-2")
    made = make_connection(
        "lent",
        provider_type=provider_type,
        auth_type="environment",
        base_url="",
        aws_region="eu-central-1",
        gcp_region="europe-west1",
        gcp_project_id="project-1",
    )
    target_of(made)
    made.base_url = "https://elsewhere.example/v1"
    with pytest.raises(EnvironmentOff):
        target_of(made)

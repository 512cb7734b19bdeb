"""The closed lists of a connection: value, label and tone together, and which goes with which."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _


class ProviderType(models.TextChoices):
    ANTHROPIC = "anthropic", _("Anthropic")
    ANTHROPIC_COMPAT = "anthropic_compat", _("Anthropic-compatible endpoint")
    OPENAI = "openai", _("OpenAI (Codex)")
    OPENAI_COMPAT = "openai_compat", _("OpenAI-compatible endpoint")
    BEDROCK = "bedrock", _("AWS Bedrock")
    VERTEX = "vertex", _("Google Vertex AI")

    @property
    def is_compat(self) -> bool:
        """A custom endpoint: somebody else's server speaking one of the two wire formats."""
        return self in (ProviderType.ANTHROPIC_COMPAT, ProviderType.OPENAI_COMPAT)


class AuthType(models.TextChoices):
    API_KEY = "api_key", _("API key")
    API_KEY_WITH_ENDPOINT = "api_key_with_endpoint", _("API key with endpoint")
    OAUTH = "oauth", _("Sign-in (OAuth)")
    IAM_CREDENTIALS = "iam_credentials", _("IAM credentials")
    SERVICE_ACCOUNT_FILE = "service_account_file", _("Service-account file")
    ENVIRONMENT = "environment", _("Environment of the server")
    NONE = "none", _("None")


# Which auth type goes with which provider type; the first is the form's choice.
ALLOWED_AUTH: dict[ProviderType, tuple[AuthType, ...]] = {
    ProviderType.ANTHROPIC: (AuthType.API_KEY, AuthType.OAUTH, AuthType.ENVIRONMENT),
    ProviderType.ANTHROPIC_COMPAT: (AuthType.API_KEY_WITH_ENDPOINT, AuthType.NONE),
    ProviderType.OPENAI: (
        AuthType.API_KEY,
        AuthType.API_KEY_WITH_ENDPOINT,
        AuthType.OAUTH,
        AuthType.ENVIRONMENT,
    ),
    ProviderType.OPENAI_COMPAT: (AuthType.API_KEY_WITH_ENDPOINT, AuthType.NONE),
    ProviderType.BEDROCK: (AuthType.IAM_CREDENTIALS, AuthType.API_KEY, AuthType.ENVIRONMENT),
    ProviderType.VERTEX: (AuthType.SERVICE_ACCOUNT_FILE, AuthType.ENVIRONMENT),
}

# The fields of the secret by auth type: form name → whether it is required.
SECRET_FIELDS: dict[AuthType, dict[str, bool]] = {
    AuthType.API_KEY: {"api_key": True},
    AuthType.API_KEY_WITH_ENDPOINT: {"api_key": True},
    AuthType.OAUTH: {},  # obtained by signing in, never typed
    AuthType.IAM_CREDENTIALS: {
        "access_key_id": True,
        "secret_access_key": True,
        "session_token": False,
    },
    AuthType.SERVICE_ACCOUNT_FILE: {"service_account_json": True},
    AuthType.ENVIRONMENT: {},
    AuthType.NONE: {},
}


class Wire(models.TextChoices):
    """`customEndpoint.api`: the wire format a custom endpoint speaks."""

    OPENAI_COMPLETIONS = "openai-completions", _("OpenAI Chat Completions")
    ANTHROPIC_MESSAGES = "anthropic-messages", _("Anthropic Messages")


class MidStream(models.TextChoices):
    STEER = "steer", _("Steer immediately")
    QUEUE = "queue", _("Queue until ready")


class AuthHeader(models.TextChoices):
    X_API_KEY = "x-api-key", "x-api-key"
    BEARER = "bearer", "Authorization: Bearer"


class MaxTokensField(models.TextChoices):
    MAX_TOKENS = "max_tokens", "max_tokens"
    MAX_COMPLETION_TOKENS = "max_completion_tokens", "max_completion_tokens"


class AccessMode(models.TextChoices):
    ALL = "all", _("All workspaces")
    CHOSEN = "chosen", _("Chosen workspaces")


class Status(models.TextChoices):
    UNCHECKED = "unchecked", _("Not checked yet")
    INCOMPLETE = "incomplete", _("Secret needed")
    CHECKING = "checking", _("Checking…")
    VALID = "valid", _("Valid")
    FAILED = "failed", _("Failed")
    SEALED = "sealed", _("Secret unreadable")
    DISABLED = "disabled", _("Paused")

    @property
    def tone(self) -> str:
        return _TONE[self]


_TONE = {
    Status.UNCHECKED: "neutral",
    Status.INCOMPLETE: "warning",
    Status.CHECKING: "info",
    Status.VALID: "success",
    Status.FAILED: "danger",
    Status.SEALED: "danger",
    Status.DISABLED: "neutral",
}


class Rung(models.TextChoices):
    CONFIG = "config", _("Configuration")
    NETWORK = "network", _("Network")
    AUTH = "auth", _("Authentication")
    MODELS = "models", _("Models")
    ANSWER = "answer", _("Answer")
    STREAM = "stream", _("Streaming")


class Outcome(models.TextChoices):
    PASSED = "passed", _("Passed")
    FAILED = "failed", _("Failed")
    NOT_TESTED = "not_tested", _("Not tested")

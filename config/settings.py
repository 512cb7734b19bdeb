"""Every setting of Patchbay, each value from the environment through `config.env`.

With nothing set, everything is embedded: SQLite and a Valkey server of our own under
`PATCHBAY_DATA_DIR` (default `./data`). The variables are listed in docs/operations.md.
"""

import hashlib
import logging
import os
from pathlib import Path
from urllib.parse import quote, urlsplit

import dj_database_url
from django.utils.csp import CSP

from config import env
from workspaces import logs

BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = Path(env.string("PATCHBAY_DATA_DIR") or BASE_DIR / "data").absolute()
KEYS_DIR = DATA_DIR / "keys"

# -- where and how -------------------------------------------------------------------------------
PORT = env.integer("PORT", 8000, least=1, most=65535)
PUBLIC_URL = (env.string("PATCHBAY_URL") or f"http://127.0.0.1:{PORT}").rstrip("/")
_public = urlsplit(PUBLIC_URL)
if _public.scheme not in {"http", "https"} or not _public.hostname or _public.path:
    raise env.BadEnv("PATCHBAY_URL: use http://host[:port] or https://host[:port], without a path")
PRODUCTION = _public.scheme == "https"
DEBUG = env.boolean("PATCHBAY_DEBUG")
DEFAULT_EXCEPTION_REPORTER_FILTER = "config.debug.NoValues"
SECRET_KEY = env.made_secret("SECRET_KEY", KEYS_DIR / "django.key", bytes_=48)
SETUP_TOKEN = env.string("PATCHBAY_SETUP_TOKEN") or ""
METRICS_TOKEN = env.string("PATCHBAY_METRICS_TOKEN") or ""  # no /metrics without it
TRUSTED_PROXIES = env.items("PATCHBAY_TRUSTED_PROXIES")
ALLOWED_HOSTS = [_public.hostname]
if _public.hostname in {"127.0.0.1", "localhost", "::1"}:
    ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]"]
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL]

# -- secrets of connections (workspaces.vault) -----------------------------------------------------
SECRET_KEYS = list(env.items("PATCHBAY_SECRET_KEYS"))
START_SEALED = env.boolean("PATCHBAY_START_SEALED")

# -- database, broker ------------------------------------------------------------------------------
_database_url = env.string("DATABASE_URL") or ""
_redis_url = env.string("REDIS_URL") or ""
EMBEDDED = not _database_url and not _redis_url
if _database_url:
    DATABASES = {"default": dj_database_url.parse(_database_url, conn_max_age=0)}
    if DATABASES["default"]["ENGINE"] != "django.db.backends.postgresql":
        raise env.BadEnv("DATABASE_URL: use postgres://user:password@host:port/name")
    DATABASES["default"].setdefault("OPTIONS", {})["pool"] = {
        "min_size": 1,
        "max_size": env.integer("PATCHBAY_DATABASE_POOL", 20, least=2, most=500),
        "timeout": 5,
        # The pool's own tries come ever later, up to minutes after the server is back. Given up at
        # once, each request that comes makes it try anew.
        "reconnect_timeout": 1,
    }
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": DATA_DIR / "patchbay.sqlite3",
            "CONN_MAX_AGE": None,  # a thread keeps its own: opening one costs a millisecond
            "OPTIONS": {
                # IMMEDIATE takes the write lock at BEGIN: the only way that "read, then write"
                # never ends in "database is locked" (SQLite has no row locks).
                "transaction_mode": "IMMEDIATE",
                "timeout": 20,
                "init_command": "PRAGMA journal_mode=WAL;PRAGMA synchronous=NORMAL;",
            },
        }
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"


def _runtime_dir() -> Path:
    """Where Valkey's socket stands: a socket's path may have about 100 bytes. The way round a long
    one depends on the data directory only, not on TMPDIR: every command must find the same."""
    run = DATA_DIR / "run"
    if len(os.fsencode(run / "valkey.sock")) <= 100:
        return run
    digest = hashlib.sha256(os.fsencode(DATA_DIR)).hexdigest()[:16]
    return Path("/tmp") / f"patchbay-{os.getuid()}-{digest}"  # noqa: S108 (serve checks the owner)


RUN_DIR = _runtime_dir()
VALKEY_SOCKET = RUN_DIR / "valkey.sock"
VALKEY_PASSWORD = ""  # empty: no server of our own
if _redis_url:
    REDIS_URL = CELERY_BROKER_URL = _redis_url
    if _redis_url.startswith("rediss:") and "ssl_cert_reqs=" not in _redis_url:
        # Celery by itself would take any certificate.
        CELERY_BROKER_URL += f"{'&' if '?' in _redis_url else '?'}ssl_cert_reqs=required"
else:
    VALKEY_PASSWORD = env.made_secret("PATCHBAY_VALKEY_PASSWORD", KEYS_DIR / "valkey.password")
    _server = f":{quote(VALKEY_PASSWORD, safe='')}@{quote(os.fsencode(VALKEY_SOCKET))}"
    REDIS_URL = f"unix://{_server}?db=0"
    CELERY_BROKER_URL = f"redis+socket://{_server}?virtual_host=0"

CACHES = {
    "default": {
        "BACKEND": "config.cache.ForgivingRedisCache",
        "LOCATION": REDIS_URL,
        "KEY_PREFIX": "patchbay",
        "OPTIONS": {"socket_timeout": 1, "socket_connect_timeout": 1},
    }
}

# The database is the queue of record, Celery is the doorbell: a call that doesn't get through in
# two seconds is made good by the worker's own sweep.
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = False
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_PUBLISH_RETRY = False
CELERY_TASK_DEFAULT_QUEUE = "probes"
CELERY_TASK_ROUTES = {"sessions.tasks.*": {"queue": "turns"}}
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "socket_timeout": 2,
    "socket_connect_timeout": 2,
    "retry_on_timeout": False,
    "max_retries": 0,
    "global_keyprefix": "patchbay:celery:",
}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_PREFETCH_MULTIPLIER = 4
# Without late acknowledgement there is nothing to cancel; unset, Celery warns at every lost Redis.
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = True
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
CELERY_TIMEZONE = "UTC"

# -- the way out -----------------------------------------------------------------------------------
EGRESS_ALLOW = env.string("PATCHBAY_EGRESS_ALLOW")
TOOL_EGRESS_ALLOW = env.string("PATCHBAY_TOOL_EGRESS_ALLOW") or ""

# Model servers that are offered for a connection when they answer: preset → base URL.
LOCAL_SERVERS = env.addresses(
    "PATCHBAY_LOCAL_SERVERS",
    {"ollama": "http://127.0.0.1:11434/v1", "lm-studio": "http://127.0.0.1:1234/v1"},
)

# Which providers may use the server's own credentials: an operator's decision, "" for none.
ENVIRONMENT_AUTH = env.chosen(
    "PATCHBAY_ENVIRONMENT_AUTH", among=("anthropic", "openai", "bedrock", "vertex")
)

# In place of Google's token endpoint, for tests: an address on this machine only.
GOOGLE_TOKEN_URL = env.loopback_url("PATCHBAY_GOOGLE_TOKEN_URL")
# Signing in to a provider (auth type oauth), off while the client id is empty. Nothing of it is
# shipped: whose client an installation may be is between its operator and the provider.
OAUTH = {
    "anthropic": {
        "client_id": env.string("PATCHBAY_OAUTH_ANTHROPIC_CLIENT_ID") or "",
        "authorize_url": env.address(
            "PATCHBAY_OAUTH_ANTHROPIC_AUTHORIZE_URL", "https://claude.ai/oauth/authorize?code=true"
        ),
        "token_url": env.address(
            "PATCHBAY_OAUTH_ANTHROPIC_TOKEN_URL", "https://console.anthropic.com/v1/oauth/token"
        ),
        "redirect_uri": env.address(
            "PATCHBAY_OAUTH_ANTHROPIC_REDIRECT_URI",
            "https://console.anthropic.com/oauth/code/callback",
        ),
        "scopes": env.string("PATCHBAY_OAUTH_ANTHROPIC_SCOPES") or "user:profile user:inference",
        "json_body": env.boolean("PATCHBAY_OAUTH_ANTHROPIC_JSON", True),
    },
    # The person signs in through the Codex binary; what it needs is with it.
    "openai": {
        "client_id": env.string("PATCHBAY_OAUTH_OPENAI_CLIENT_ID") or "",
        "token_url": env.address("PATCHBAY_OAUTH_OPENAI_ISSUER", "https://auth.openai.com").rstrip(
            "/"
        )
        + "/oauth/token",
        "json_body": True,
    },
}

# -- turns -----------------------------------------------------------------------------------------
TURNS_PER_WORKER = env.integer("PATCHBAY_TURNS_PER_WORKER", 300, least=1, most=10_000)
PROBES_PER_WORKER = 50
# What one person may do, 0 for no limit.
SENDS_PER_MINUTE = env.integer("PATCHBAY_SENDS_PER_MINUTE", 60, most=100_000)
TURNS_PER_PERSON = env.integer("PATCHBAY_TURNS_PER_PERSON", 25, most=10_000)
STREAMS_PER_PERSON = env.integer("PATCHBAY_STREAMS_PER_PERSON", 40, most=10_000)
TITLES = env.boolean("PATCHBAY_TITLES", True)
SECRET_MAX_AGE_DAYS = env.integer("PATCHBAY_SECRET_MAX_AGE_DAYS", 180, least=0, most=36_500)
# The first is the default; without the variable, the extra's own binary where it is installed.
CODEX_PATHS = env.items("PATCHBAY_CODEX_PATHS", env.bundled_codex())
CODEX_PROCESSES = env.integer("PATCHBAY_CODEX_PROCESSES", 8, least=1, most=1_000)

# -- apps ------------------------------------------------------------------------------------------
INSTALLED_APPS = [
    "config.apps.ConfigConfig",
    "workspaces.apps.WorkspacesConfig",
    "connections.apps.ConnectionsConfig",
    "sessions.apps.SessionsConfig",
    "config.apps.PatchbayAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.socialaccount",
    "allauth.socialaccount.providers.openid_connect",
    "workspaces.apps.DevicesConfig",
    "django_htmx",
]
MIDDLEWARE = [
    "config.middleware.NamedForLogs",
    "config.middleware.Compressed",
    # What every answer carries, those of the layers below too.
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.csp.ContentSecurityPolicyMiddleware",
    "config.middleware.PrivatePages",
    "config.middleware.RequestLimits",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "config.middleware.PersonsLanguage",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]
ROOT_URLCONF = "config.urls"
ASGI_APPLICATION = "config.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.template.context_processors.csp",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "config.context.shell",
            ],
            "builtins": ["config.templatetags.ui"],
        },
    }
]

# -- sign-in ---------------------------------------------------------------------------------------
AUTH_USER_MODEL = "workspaces.User"
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {
        "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
        "OPTIONS": {"min_length": 10},
    },
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "account_login"
ACCOUNT_ADAPTER = "workspaces.accounts.ClosedSignup"
ACCOUNT_FORMS = {
    "login": "workspaces.accounts.SignIn",
    "change_password": "workspaces.accounts.PasswordChange",
    "reset_password": "workspaces.accounts.ResetRequest",
    "reset_password_from_key": "workspaces.accounts.ResetPassword",
    "reauthenticate": "workspaces.accounts.PasswordAgain",
}
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*", "password2*"]
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_SESSION_REMEMBER = True
ACCOUNT_LOGOUT_ON_GET = False
ACCOUNT_EMAIL_NOTIFICATIONS = False
PASSWORD_RESET_TIMEOUT = 3600  # seconds
MFA_ADAPTER = "workspaces.second_factor.Adapter"
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_WEBAUTHN_USER_VERIFICATION = "required"  # a stolen key alone is nothing, at any page
MFA_RATE_LIMITS = {"webauthn_login": "60/m/ip"}  # two requests each; by password: 30
MFA_TOTP_ISSUER = "Patchbay"
MFA_FORMS = {
    "authenticate": "workspaces.second_factor.CodeForm",
    "reauthenticate": "workspaces.second_factor.CodeAgainForm",
    "activate_totp": "workspaces.second_factor.ActivateForm",
    "authenticate_webauthn": "workspaces.passkeys.SecondForm",
    "reauthenticate_webauthn": "workspaces.passkeys.AgainForm",
    "add_webauthn": "workspaces.passkeys.AddForm",
    "edit_webauthn": "workspaces.passkeys.NameForm",
}

# One OpenID Connect issuer. Who somebody is there is told by issuer and subject, never by the
# address: the provider's id, under which allauth keeps a subject, is made from the issuer.
OIDC = {
    name: env.string(f"PATCHBAY_OIDC_{name.upper()}") or ""
    for name in ("issuer", "client_id", "client_secret", "name")
}
OIDC_IS_SET_UP = bool(OIDC["issuer"] and OIDC["client_id"] and OIDC["client_secret"])
if not OIDC_IS_SET_UP and any(OIDC.values()):
    raise env.BadEnv(
        "PATCHBAY_OIDC_ISSUER, PATCHBAY_OIDC_CLIENT_ID and PATCHBAY_OIDC_CLIENT_SECRET go together:"
        " set all three or none"
    )
if OIDC_IS_SET_UP and urlsplit(OIDC["issuer"]).scheme not in {"http", "https"}:
    raise env.BadEnv("PATCHBAY_OIDC_ISSUER: use the issuer's address, https://…")
OIDC["name"] = OIDC["name"] or urlsplit(OIDC["issuer"]).hostname or ""
OIDC_PROVIDER = "oidc-" + hashlib.sha256(OIDC["issuer"].rstrip("/").encode()).hexdigest()[:12]
SSO_ONLY = env.boolean("PATCHBAY_SSO_ONLY")
if SSO_ONLY and not OIDC_IS_SET_UP:
    raise env.BadEnv("PATCHBAY_SSO_ONLY: set PATCHBAY_OIDC_ISSUER and its two companions first")
SOCIALACCOUNT_ADAPTER = "workspaces.sso.Adapter"
SOCIALACCOUNT_EMAIL_AUTHENTICATION = False
SOCIALACCOUNT_STORE_TOKENS = False
SOCIALACCOUNT_PROVIDERS = {
    "openid_connect": {
        "APPS": [
            {
                "provider_id": OIDC_PROVIDER,
                "name": OIDC["name"],
                "client_id": OIDC["client_id"],
                "secret": OIDC["client_secret"],
                "settings": {"server_url": OIDC["issuer"], "oauth_pkce_enabled": True},
            }
        ]
        if OIDC_IS_SET_UP
        else []
    }
}

# -- the browser -----------------------------------------------------------------------------------
SESSION_ENGINE = "workspaces.session_store"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_HTTPONLY = False
CSRF_COOKIE_SAMESITE = "Lax"
CSRF_FAILURE_VIEW = "config.views.csrf_failure"
SESSION_COOKIE_NAME = "patchbay_session"
CSRF_COOKIE_NAME = "patchbay_csrf"
WORKSPACE_COOKIE_NAME = "patchbay_workspace"
MESSAGE_COOKIE_NAME = "patchbay_messages"
MESSAGE_STORAGE = "config.messages.HostCookieStorage"
if PRODUCTION:
    SESSION_COOKIE_NAME = "__Host-session"
    CSRF_COOKIE_NAME = "__Host-csrf"
    WORKSPACE_COOKIE_NAME = "__Host-workspace"
    MESSAGE_COOKIE_NAME = "__Host-messages"
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
    SECURE_HSTS_SECONDS = 365 * 24 * 3600
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    SECURE_HSTS_PRELOAD = True
    SECURE_SSL_REDIRECT = True
    SECURE_REDIRECT_EXEMPT = [r"^(healthz|readyz|metrics)/?$"]
    # No SECURE_PROXY_SSL_HEADER: anybody can send that header. The web process reads it from
    # PATCHBAY_TRUSTED_PROXIES only and hands Django a connection that is https.
X_FRAME_OPTIONS = "DENY"
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_CSP = {
    "default-src": [CSP.NONE],
    "script-src": [CSP.SELF, CSP.NONCE],
    "style-src": [CSP.SELF],
    "img-src": [CSP.SELF, "data:"],
    "font-src": [CSP.SELF],
    "connect-src": [CSP.SELF],
    "manifest-src": [CSP.SELF],
    "base-uri": [CSP.NONE],
    "object-src": [CSP.NONE],
    "frame-ancestors": [CSP.NONE],
    "form-action": [CSP.SELF],
}
REQUEST_BODY_LIMIT = 24 * 1024 * 1024  # with its images; refused before Django reads it
DATA_UPLOAD_MAX_MEMORY_SIZE = 12 * 1024 * 1024
DATA_UPLOAD_MAX_NUMBER_FIELDS = 1000
FILE_UPLOAD_MAX_MEMORY_SIZE = 12 * 1024 * 1024

# -- files, languages ------------------------------------------------------------------------------
STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
STATICFILES_DIRS = [BASE_DIR / "static", ("guide", BASE_DIR / "docs" / "guide" / "pictures")]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
MEDIA_ROOT = DATA_DIR / "attachments"
# Each in its own words. People choose in their profile, else their browser does; LANGUAGE_CODE is
# for texts that reach nobody's browser: messages of a webhook, mail to who never chose.
LANGUAGES = [("en", "English"), ("de", "Deutsch")]
LANGUAGE_CODE = env.one_of("PATCHBAY_LANGUAGE", [code for code, _name in LANGUAGES])
LOCALE_PATHS = [BASE_DIR / "locale"]
TIME_ZONE = "UTC"
USE_TZ = True

MAIL_IS_SET_UP = bool(env.string("EMAIL_URL"))
MAILERS = {"default": env.mailer(env.string("EMAIL_URL") or "console:")}
SILENCED_SYSTEM_CHECKS = ["mail.E001"]  # mail is optional: without EMAIL_URL it goes to the log
DEFAULT_FROM_EMAIL = env.string("PATCHBAY_MAIL_FROM") or f"patchbay@{_public.hostname}"

# -- logs: never a text of a person, a secret or a full URL (workspaces.logs) ----------------------
LOG_FORMAT = env.string("PATCHBAY_LOG_FORMAT") or "text"
if LOG_FORMAT not in {"text", "json"}:
    raise env.BadEnv("PATCHBAY_LOG_FORMAT: use text or json")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "text": {"()": "workspaces.logs.Line"},
        "json": {"()": "workspaces.logs.JSON"},
    },
    "filters": {
        "safe": {"()": "django.utils.log.CallbackFilter", "callback": logs.without_values},
    },
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "formatter": LOG_FORMAT,
            "filters": ["safe"],
        }
    },
    "root": {"handlers": ["stderr"], "level": "DEBUG" if DEBUG else "INFO"},
    "loggers": {
        # httpx logs every full URL at INFO, httpcore every header at DEBUG; the database backend
        # logs every parameter at DEBUG.
        **{
            name: {"level": "WARNING"}
            for name in ("httpx", "httpcore", "django.db.backends", "markdown_it", "PIL", "asyncio")
        },
        # At DEBUG it logs what it signs, the session token included, and what its chain is told.
        "botocore": {"level": "WARNING"},
        "celery": {"level": "INFO" if DEBUG else "WARNING"},
        "kombu": {"level": "WARNING"},
        "amqp": {"level": "WARNING"},
        # Its own handler, in debug, would write everything once more, values included.
        "django": {"level": "INFO", "handlers": []},
        "django.request": {"level": "ERROR"},
        "django.security.DisallowedHost": {"level": "ERROR"},
        # A line a request and a line a turn are for machines.
        **{
            name: {"level": "INFO" if LOG_FORMAT == "json" else "WARNING"}
            for name in ("patchbay.access", "patchbay.turns")
        },
    },
}
logging.captureWarnings(True)

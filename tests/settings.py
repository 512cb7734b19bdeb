"""Settings of the test suite: the product's own, with fixed keys and fast password hashes.

Of the environment only DATABASE_URL counts: a person's own settings, and data, stay out of it. Each
process of the suite has a data directory of its own, which its own children share.
"""

import atexit
import os
import shutil
import tempfile

_process = os.environ.get("PYTEST_XDIST_WORKER", "main")
if os.environ.get("PATCHBAY_TEST_PROCESS") != _process:
    for _name in list(os.environ):
        _plain = _name.removesuffix("_FILE")
        if _plain in {"REDIS_URL", "EMAIL_URL", "PORT"} or (
            _plain.startswith("PATCHBAY_") and _plain != "PATCHBAY_CHROMIUM"
        ):
            del os.environ[_name]
    os.environ["PATCHBAY_TEST_PROCESS"] = _process
    os.environ["PATCHBAY_DATA_DIR"] = tempfile.mkdtemp(prefix="patchbay-test-")
    os.environ["SECRET_KEY"] = "test-only-" + "k" * 50
    os.environ["PATCHBAY_SECRET_KEYS"] = "OBb4uf-HaK38PvijYXtXumLWbQsmG1uz5XtPcKp3PkM"
    # In a worker of pytest-xdist nothing runs at exit: tests/conftest.py does it too.
    atexit.register(shutil.rmtree, os.environ["PATCHBAY_DATA_DIR"], ignore_errors=True)

from config.settings import *  # noqa: E402, F403
from config.settings import DATA_DIR, DATABASES, STORAGES  # noqa: E402

# One person does here what many do elsewhere; a test of the limits sets its own.
SENDS_PER_MINUTE = TURNS_PER_PERSON = STREAMS_PER_PERSON = 0
LOCAL_SERVERS = {}  # a developer's own Ollama is none of the tests' business
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# Templates name static files without the manifest that `collectstatic` writes.
STORAGES["staticfiles"] = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
if "sqlite3" in DATABASES["default"]["ENGINE"]:
    # A file as in production: an in-memory database that threads share locks whole tables.
    DATABASES["default"]["TEST"] = {"NAME": DATA_DIR / "test.sqlite3"}

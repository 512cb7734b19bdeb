"""Settings of the test suite: the product's own, with fixed keys and fast password hashes.

Each process has a data directory of its own, removed when it ends.
"""

import atexit
import os
import shutil
import tempfile

if "PATCHBAY_DATA_DIR" not in os.environ or "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["PATCHBAY_DATA_DIR"] = tempfile.mkdtemp(prefix="patchbay-test-")
    atexit.register(shutil.rmtree, os.environ["PATCHBAY_DATA_DIR"], ignore_errors=True)
os.environ.setdefault("SECRET_KEY", "test-only-" + "k" * 50)
os.environ.setdefault("PATCHBAY_SECRET_KEYS", "OBb4uf-HaK38PvijYXtXumLWbQsmG1uz5XtPcKp3PkM")

from config.settings import *  # noqa: F403
from config.settings import DATA_DIR, DATABASES, STORAGES

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# Templates name static files without the manifest that `collectstatic` writes.
STORAGES["staticfiles"] = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
if "sqlite3" in DATABASES["default"]["ENGINE"]:
    # A file as in production: an in-memory database that threads share locks whole tables.
    DATABASES["default"]["TEST"] = {"NAME": DATA_DIR / "test.sqlite3"}

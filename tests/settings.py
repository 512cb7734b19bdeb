"""Settings of the test suite: the product's own, with fixed keys and fast password hashes."""

import os
import tempfile

os.environ.setdefault("PATCHBAY_DATA_DIR", tempfile.mkdtemp(prefix="patchbay-test-"))
os.environ.setdefault("SECRET_KEY", "test-only-" + "k" * 50)
os.environ.setdefault("PATCHBAY_SECRET_KEYS", "OBb4uf-HaK38PvijYXtXumLWbQsmG1uz5XtPcKp3PkM")

from config.settings import *  # noqa: E402, F403

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"

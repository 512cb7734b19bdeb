"""The server's own AWS credentials, by botocore's chain: variables, profiles, SSO, roles.

Only for connections of auth type `environment`, which the operator must allow; no other connection
ever looks here. The chain may run a `credential_process` and asks AWS's token and metadata services
by transports of its own (docs/threat-model.md); it has threads of its own, since it blocks.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from botocore.credentials import RefreshableCredentials
from botocore.session import Session

from connections.providers.base import ErrorKind, ProviderError

SECONDS = 15.0  # that a call waits for the chain
# Those that don't refresh themselves are looked up again: people's tools rewrite the files.
MAX_AGE = 60.0
_BEARER = "AWS_BEARER_TOKEN_BEDROCK"

_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="aws-credentials")


class Chain:
    """What the chain found last. `read` may be called by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: Any = None
        self._since = 0.0

    def forget(self) -> None:
        self._found = None

    def read(self) -> dict[str, str]:
        """The fields of a secret of `iam_credentials`; {} when there are none. Blocks; raises
        whatever botocore does."""
        found = self._found
        refreshes = isinstance(found, RefreshableCredentials)
        if found is None or not (refreshes or time.monotonic() - self._since < MAX_AGE):
            with self._lock:
                if self._found is found:  # nobody else was quicker
                    self._found = Session().get_credentials()
                    self._since = time.monotonic()
                found = self._found
        if found is None:
            return {}
        frozen = found.get_frozen_credentials()  # refreshes them when it is time
        secret = {"access_key_id": frozen.access_key, "secret_access_key": frozen.secret_key}
        return secret | ({"session_token": frozen.token} if frozen.token else {})


chain = Chain()


async def credentials() -> Mapping[str, str]:
    """What authenticates to Bedrock, by the form names of a secret: an API key where the variable
    for it is set (it wins, as with the SDK), else IAM credentials. Raises ProviderError."""
    if key := os.environ.get(_BEARER, "").strip():
        return {"api_key": key}
    try:
        async with asyncio.timeout(SECONDS):
            found = await asyncio.get_running_loop().run_in_executor(_threads, chain.read)
    except TimeoutError:
        message = "The server's AWS credentials could not be had in time."
        raise ProviderError(ErrorKind.TIMEOUT, message) from None
    except Exception as error:
        # By its type alone: its words may be those of a program that prints credentials.
        message = f"The server's AWS credentials could not be had: {type(error).__name__}."
        raise ProviderError(ErrorKind.AUTH, message) from None
    if not found:
        message = "The server's environment holds no AWS credentials."
        raise ProviderError(ErrorKind.AUTH, message)
    return found

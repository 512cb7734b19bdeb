"""AWS Signature Version 4 for a request of our own client, made by botocore's signer.

What is signed is what goes: the URL as httpx wrote it, the body, the host, the content type and
every `x-amz-` header. The other headers are left out, as proxies on the way may change them.

botocore logs what it signs, the session token included, at DEBUG: `LOGGING` keeps it at WARNING.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import httpx
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

# Set by the signer; from outside they would be signed, or trusted, as they came.
_OURS = frozenset({"authorization", "x-amz-date", "x-amz-security-token", "x-amz-content-sha256"})
_SIGNED = frozenset({"host", "content-type"})


@dataclass(frozen=True, slots=True)
class AccessKey:
    """Whose signature it is."""

    id: str = field(repr=False)
    secret: str = field(repr=False)
    token: str = field(default="", repr=False)


def sign(request: httpx.Request, key: AccessKey, *, service: str, region: str) -> None:
    """Puts the signature's headers into `request`, last of all that is done to it. Costs about
    0.2 ms and the hash of the body."""
    for name in _OURS:
        request.headers.pop(name, None)
    signed = {
        name: value
        for name, value in request.headers.items()
        if name in _SIGNED or name.startswith("x-amz-")
    }
    copy = AWSRequest(request.method, str(request.url), headers=signed, data=request.content)
    signer = SigV4Auth(Credentials(key.id, key.secret, key.token or None), service, region)
    signer.add_auth(copy)
    for name, value in copy.headers.items():
        if name.lower() in _OURS:
            request.headers[name.lower()] = value

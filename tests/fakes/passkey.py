"""A device that keeps passkeys, in software: answers what the pages ask, rightly or as told."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from fido2.cose import ES256
from fido2.utils import sha256, websafe_decode, websafe_encode
from fido2.webauthn import (
    AttestationObject,
    AttestedCredentialData,
    AuthenticatorData,
    CollectedClientData,
)

FLAG = AuthenticatorData.FLAG


@dataclass
class Passkey:
    """One, at one site. Its attributes may be changed to what an honest device wouldn't say."""

    origin: str = "http://localhost"
    rp_id: str = "localhost"
    counter: int = 1
    flags: FLAG = FLAG.UP | FLAG.UV
    cross_origin: bool = False
    user: str = ""
    raw_id: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def _said(self, kind: str, challenge: str) -> CollectedClientData:
        return CollectedClientData.create(kind, challenge, self.origin, self.cross_origin)

    def _answer(self, **response: Any) -> str:
        told = {name: websafe_encode(value) for name, value in response.items()}
        told_id = websafe_encode(self.raw_id)
        return json.dumps({"id": told_id, "rawId": told_id, "type": "public-key", "response": told})

    def create(self, options: str) -> str:
        """The answer to what a page that adds a passkey asks."""
        asked = json.loads(options)["publicKey"]
        assert asked["authenticatorSelection"]["residentKey"] == "required"
        assert asked["authenticatorSelection"]["userVerification"] == "required"
        self.user = asked["user"]["id"]
        public = ES256.from_cryptography_key(self.key.public_key())
        data = AttestedCredentialData.create(os.urandom(16), self.raw_id, public)
        made = AuthenticatorData.create(
            sha256(self.rp_id.encode()), self.flags | FLAG.AT, self.counter, data
        )
        return self._answer(
            clientDataJSON=self._said("webauthn.create", asked["challenge"]),
            attestationObject=AttestationObject.create("none", made, {}),
        )

    def get(self, options: str) -> str:
        """The answer to what a page asks that wants to know who is there."""
        asked = json.loads(options)["publicKey"]
        assert asked["userVerification"] == "required"
        assert asked["rpId"] == "localhost"
        self.counter += 1
        data = AuthenticatorData.create(sha256(self.rp_id.encode()), self.flags, self.counter)
        said = self._said("webauthn.get", asked["challenge"])
        signature = self.key.sign(data + said.hash, ec.ECDSA(hashes.SHA256()))
        return self._answer(
            clientDataJSON=said,
            authenticatorData=data,
            signature=signature,
            userHandle=websafe_decode(self.user),
        )

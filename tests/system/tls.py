"""A reverse proxy that ends TLS, as a production installation has one."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.system.harness import free_port

_OWN = {"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"}


class TlsProxy:
    """`https://127.0.0.1:<port>` in front of a plain server; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.upstream = ""
        self._file = folder / "proxy.pem"

    def __enter__(self) -> Self:
        self._file.write_bytes(certificate())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._file)
        self._client = httpx.Client(trust_env=False, timeout=30)
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._client.close()

    def ask(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> Any:
        return self._client.request(method, self.upstream + path, headers=headers, content=body)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: TlsProxy

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = [(k, v) for k, v in self.headers.items() if k.lower() not in _OWN]
        headers = [(k, v) for k, v in headers if not k.lower().startswith("x-forwarded-")]
        headers += [("X-Forwarded-Proto", "https"), ("X-Forwarded-For", "192.0.2.7")]
        answer = self.proxy.ask(self.command, self.path, headers, body)
        data = answer.content if self.command != "HEAD" else b""
        self.send_response_only(answer.status_code)
        for name, value in answer.headers.multi_items():
            if name not in _OWN | {"content-encoding"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = do_OPTIONS = _forward

    def log_message(self, format: str, *args: object) -> None:
        pass


def certificate(*names: str) -> bytes:
    """A key and a certificate for 127.0.0.1 and these names, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    subjects: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    subjects += [x509.DNSName(name) for name in names]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(subjects), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + made.public_bytes(serialization.Encoding.PEM)

"""Stand-ins for S3, Google Cloud Storage and Azure Blob Storage on loopback.

Google's and Azure's libraries, as Label Studio calls them, take no other address than the real one.
So the stand-in is an HTTPS proxy too, as in a company's network: it ends the connection to those
hosts itself, with a certificate that `Buckets.environment` makes the server trust. It holds one
bucket ``drives`` with the folder ``front``, and shows an object only to whoever brings a signature
made with the right key for that very object, which it works out itself.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import hmac
import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

BUCKET, FOLDER = "drives", "front"
OBJECT = b"the picture of a frame"
ACCOUNT = "ofatest"
USER = "label@of-a-test.iam.gserviceaccount.com"
_GOOGLE, _TOKENS = "storage.googleapis.com", "oauth2.googleapis.com"
_AZURE = f"{ACCOUNT}.blob.core.windows.net"
HOSTS = (_GOOGLE, _TOKENS, _AZURE)
"""Whom it answers for; others are noted and refused."""
_SECRET = "not-a-secret"
_AZURE_KEY = base64.b64encode(b"not a secret either").decode()
_SAS = (
    *("sp", "st", "se", "{}", "si", "sip", "spr", "sv", "sr", "snapshot", "ses"),
    *("rscc", "rscd", "rsce", "rscl", "rsct"),
)
"""What a SAS signs, in order; {} is the object."""


@dataclass(frozen=True)
class Buckets:
    """``environment`` is a user's: credentials, proxy, certificate. ``asked``: hosts and paths."""

    url: str
    trusted: Path
    environment: dict[str, str]
    asked: list[tuple[str, str]]


@dataclass
class _Store:
    tls: ssl.SSLContext
    google: rsa.RSAPublicKey
    asked: list[tuple[str, str]] = field(default_factory=list)


@contextlib.contextmanager
def buckets(folder: Path) -> Iterator[Buckets]:
    """Start the stand-in; its throw-away keys and certificate lie in ``folder``."""
    signer = rsa.generate_private_key(65537, 2048)
    trusted, key = _certificate(folder)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(trusted, key)
    store = _Store(tls, signer.public_key())
    # A class of its own, so that two stand-ins at once share nothing.
    handler = type("_Handler", (_Answers,), {"store": store})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{http.server_address[1]}"
    account = folder / "service-account.json"
    account.write_text(json.dumps(_service_account(signer)))
    environment = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "of-a-test",
        "AWS_SECRET_ACCESS_KEY": _SECRET,
        "GOOGLE_APPLICATION_CREDENTIALS": str(account),
        "AZURE_BLOB_ACCOUNT_NAME": ACCOUNT,
        "AZURE_BLOB_ACCOUNT_KEY": _AZURE_KEY,
        "HTTPS_PROXY": url,
        "REQUESTS_CA_BUNDLE": str(trusted),
    }
    try:
        yield Buckets(url, trusted, environment, store.asked)
    finally:
        http.shutdown()
        http.server_close()


class _Answers(BaseHTTPRequestHandler):
    """As much as Label Studio asks before it attaches a bucket, and the objects in it."""

    protocol_version = "HTTP/1.1"
    store: _Store
    host = ""
    """Whom the caller believes to speak to; empty for S3, which is asked by its own address."""

    def do_CONNECT(self) -> None:
        self.host = self.path.partition(":")[0]
        self.store.asked.append((self.host, ""))
        if self.host not in HOSTS:
            self._send(403, "text/plain", b"")
            return
        self.send_response(200)
        self.end_headers()
        self.request = self.store.tls.wrap_socket(self.connection, server_side=True)
        self.setup()  # once more, upon what is now encrypted
        self.close_connection = False

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.store.asked.append((self.host, parts.path))
        if parts.path.startswith(f"/{BUCKET}/{FOLDER}/"):
            shown = self._is_signed(parts.path, parts.query)
            self._send(200 if shown else 403, "image/png", OBJECT if shown else b"")
        elif self.host == _GOOGLE:
            self._google(parts.path, query)
        elif self.host == _AZURE:
            self._azure(query)
        else:
            text = "<ListBucketResult><KeyCount>1</KeyCount></ListBucketResult>"
            self._send(200, "application/xml", text.encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        token = {"access_token": "of-a-test", "expires_in": 3600, "token_type": "Bearer"}
        found = (self.host, self.path) == (_TOKENS, "/token")
        self._send(200 if found else 404, "application/json", json.dumps(token).encode())

    def _google(self, path: str, query: dict[str, str]) -> None:
        known = path in (f"/storage/v1/b/{BUCKET}", f"/storage/v1/b/{BUCKET}/o")
        items = [{"name": f"{FOLDER}/00/a.png"}] if query.get("prefix") == FOLDER else []
        body = {"items": items} if path.endswith("/o") else {"name": BUCKET}
        allowed = self.headers["Authorization"] is not None
        self._send(200 if known and allowed else 404, "application/json", json.dumps(body).encode())

    def _azure(self, query: dict[str, str]) -> None:
        named = f"<Blob><Name>{FOLDER}/00/a.png</Name><Properties/></Blob>"
        blobs = named if query.get("prefix") == FOLDER else ""
        text = f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker/></EnumerationResults>"
        signed = self.headers["Authorization"].startswith(f"SharedKey {ACCOUNT}:")
        found = signed and urlsplit(self.path).path == f"/{BUCKET}"
        self._send(200 if found else 404, "application/xml", text.encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Mon, 02 Nov 2026 08:00:00 GMT")
        self.send_header("ETag", '"0"')
        self.end_headers()
        self.wfile.write(body)

    def _is_signed(self, path: str, query: str) -> bool:
        given = dict(parse_qsl(query))
        if self.host == _AZURE:
            return _by_azure(path, given)
        host = self.host or self.headers["Host"]
        name, text = _to_sign(path, query, host)
        signature = given.get(f"{name}-Signature", "")
        return self._by_google(signature, text) if self.host else _by_amazon(signature, text, given)

    def _by_google(self, signature: str, text: bytes) -> bool:
        try:
            padded, digest = padding.PKCS1v15(), hashes.SHA256()
            self.store.google.verify(bytes.fromhex(signature), text, padded, digest)
        except InvalidSignature:
            return False
        return True

    def log_message(self, *_: object) -> None:
        """Nothing: pytest shows what matters."""


def _to_sign(path: str, query: str, host: str) -> tuple[str, bytes]:
    """What Amazon's and Google's fourth version sign for a GET, and how its parameters begin."""
    name = "X-Goog" if "X-Goog-Signature=" in query else "X-Amz"
    algorithm = "GOOG4-RSA-SHA256" if name == "X-Goog" else "AWS4-HMAC-SHA256"
    given = dict(parse_qsl(query))
    rest = "&".join(sorted(one for one in query.split("&") if f"{name}-Signature=" not in one))
    request = f"GET\n{path}\n{rest}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
    scope = given.get(f"{name}-Credential", "").partition("/")[2]
    digest = hashlib.sha256(request.encode()).hexdigest()
    return name, f"{algorithm}\n{given.get(f'{name}-Date')}\n{scope}\n{digest}".encode()


def _by_amazon(signature: str, text: bytes, given: dict[str, str]) -> bool:
    """Signature Version 4: the secret is narrowed to a day, a region and a service."""
    key = f"AWS4{_SECRET}".encode()
    for part in given.get("X-Amz-Credential", "").split("/")[1:]:
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.compare_digest(hmac.digest(key, text, "sha256").hex(), signature)


def _by_azure(path: str, given: dict[str, str]) -> bool:
    """A service SAS of an account key, as Azure defines it since version 2020-12-06."""
    resource = f"/blob/{ACCOUNT}{unquote(path)}"
    text = "\n".join(resource if name == "{}" else given.get(name, "") for name in _SAS)
    made = hmac.digest(base64.b64decode(_AZURE_KEY), text.encode(), "sha256")
    return hmac.compare_digest(base64.b64encode(made).decode(), given.get("sig", ""))


def _service_account(key: rsa.RSAPrivateKey) -> dict[str, Any]:
    """A key file as Google's console hands it out."""
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return {
        **{"type": "service_account", "project_id": "of-a-test", "client_email": USER},
        **{"private_key_id": "0", "private_key": pem.decode(), "client_id": "0"},
        "token_uri": f"https://{_TOKENS}/token",
    }


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for the hosts that the stand-in answers for, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "of a test")])
    now = datetime.datetime.now(datetime.UTC)
    hosts = x509.SubjectAlternativeName([x509.DNSName(one) for one in HOSTS])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(hosts, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "trusted.pem", folder / "tls-key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate, private

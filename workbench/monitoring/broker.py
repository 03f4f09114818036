"""A local MQTT broker (mosquitto) with TLS and an account for each vehicle.

    FOLDER/ca.pem, ca.key, server.pem, server.key   made once; the CA signs this broker only
    FOLDER/passwords, acl, mosquitto.conf           what mosquitto reads
    FOLDER/address.json                             where it listens
    FOLDER/accounts/NAME                            password of an account, mode 0600

A vehicle writes below ``telemetry/ITSELF/`` and reads ``ack/ITSELF``, nothing else. The
broker keeps nothing: vehicles hold each message until the ingest service has settled it.

In production any MQTT broker with TLS does, if it has these accounts and access rules.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from workbench.core.errors import ServiceError
from workbench.core.parsing import parse_json
from workbench.core.processes import die_with_parent
from workbench.core.workspace import write_atomic
from workbench.records.base import FrozenModel

__all__ = ()

INGEST_ACCOUNT: Final = "ingest"
_HOST: Final = "127.0.0.1"
_ITERATIONS: Final = 101  # mosquitto's default; passwords are 256 random bits
_VALID: Final = timedelta(days=3650)
_START_TIMEOUT_S: Final = 10.0


class BrokerAccount(FrozenModel):
    """How one client reaches the broker.

    Attributes:
        ca: PEM of the certificate authority that signed the broker.
    """

    host: str
    port: int
    ca: str
    user: str
    password: str


def mosquitto_path() -> str | None:
    """The broker's program, which Debian installs outside of most users' ``PATH``."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


class Broker:
    """The broker of one folder.

    Args:
        folder: Keys and accounts are made in it the first time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def add_accounts(self, names: Iterable[str]) -> None:
        """Make accounts that do not exist yet; a running broker knows them at once."""
        (self.folder / "accounts").mkdir(parents=True, exist_ok=True, mode=0o700)
        passwords = self.folder / "passwords"
        lines = passwords.read_text().splitlines() if passwords.exists() else []
        known = {line.partition(":")[0] for line in lines}
        for name in names:
            if name in known:
                continue
            password = secrets.token_urlsafe(32)
            write_atomic(self.folder / "accounts" / name, password.encode(), mode=0o600)
            lines.append(f"{name}:{_hashed(password)}")
        write_atomic(passwords, "".join(line + "\n" for line in lines).encode(), mode=0o600)
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def account(self, name: str) -> BrokerAccount:
        """Address and password of an account.

        Raises:
            ServiceError: The broker was never started, or has no such account.
        """
        try:
            address = parse_json((self.folder / "address.json").read_bytes())
            return BrokerAccount(
                host=address["host"],
                port=address["port"],
                ca=(self.folder / "ca.pem").read_text(),
                user=name,
                password=(self.folder / "accounts" / name).read_text(),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ServiceError(
                f"no account {name!r} at the broker",
                where=self.folder,
                hint="`workbench fleet up` makes accounts and starts the broker",
            ) from error

    def start(self) -> Broker:
        """Start it as a child of this process, and wait until it answers.

        Raises:
            ServiceError: mosquitto is not installed, or does not start.
        """
        program = mosquitto_path()
        if program is None:
            raise ServiceError("mosquitto is not installed", hint="apt-get install mosquitto")
        self.add_accounts([INGEST_ACCOUNT])
        if not (self.folder / "server.pem").exists():
            _make_certificates(self.folder)
        port = self._choose_port()
        self._write_configuration(port)
        log = (self.folder / "mosquitto.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [program, "-c", str(self.folder / "mosquitto.conf")],
                stdout=log, stderr=log, preexec_fn=die_with_parent,  # noqa: PLW1509
            )  # fmt: skip
        address = json.dumps({"host": _HOST, "port": port}).encode()
        write_atomic(self.folder / "address.json", address)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._answers(port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                lines = (self.folder / "mosquitto.log").read_text().splitlines()
                last = lines[-1] if lines else "no message"
                raise ServiceError(f"mosquitto does not start: {last}", where=self.folder)
            time.sleep(0.02)
        return self

    def stop(self, *, kill: bool = False) -> None:
        """Stop it; with ``kill``, as a power cut would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            self._process.wait(timeout=10)
            self._process = None

    def _answers(self, port: int) -> bool:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        try:
            with (
                socket.create_connection((_HOST, port), timeout=1) as plain,
                context.wrap_socket(plain, server_hostname=_HOST),
            ):
                return True
        except OSError:
            return False

    def _choose_port(self) -> int:
        """The port of last time if it is free: vehicles know it."""
        before = 0
        if (self.folder / "address.json").exists():
            before = int(parse_json((self.folder / "address.json").read_bytes())["port"])
        for port in (before, 0):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((_HOST, port))
                except OSError:
                    continue
                chosen: int = probe.getsockname()[1]
                return chosen
        raise ServiceError("no free port for the broker", where=_HOST)

    def _write_configuration(self, port: int) -> None:
        folder = self.folder
        rules = [
            f"user {INGEST_ACCOUNT}",
            "topic read telemetry/#",
            "topic write ack/#",
            "pattern write telemetry/%u/#",
            "pattern read ack/%u",
        ]
        write_atomic(folder / "acl", "\n".join([*rules, ""]).encode(), mode=0o600)
        lines = [
            f"listener {port} {_HOST}",
            f"certfile {folder / 'server.pem'}",
            f"keyfile {folder / 'server.key'}",
            "tls_version tlsv1.2",
            "allow_anonymous false",
            # Nobody can throw another client out by taking its id.
            "use_username_as_clientid true",
            f"password_file {folder / 'passwords'}",
            f"acl_file {folder / 'acl'}",
            "message_size_limit 1100000",
            "max_queued_messages 10000",
            "persistence false",
            "log_type error",
            "log_type warning",
            # Started by root it would become another user, who cannot read these files.
            f"user {pwd.getpwuid(os.getuid()).pw_name}",
        ]
        write_atomic(folder / "mosquitto.conf", "\n".join([*lines, ""]).encode())


def _hashed(password: str) -> str:
    """As mosquitto_passwd writes it: PBKDF2 with SHA-512."""
    salt = secrets.token_bytes(12)
    key = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(key).decode()}"


def _make_certificates(folder: Path) -> None:
    """A certificate authority for this broker only, and the broker's certificate."""
    now = datetime.now(UTC)
    ca_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA of the workbench's broker")])

    def certificate(name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + _VALID)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False
            )
        )

    ca_identifier = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    usage = dict.fromkeys(
        (
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
            "key_agreement", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    ca = (
        certificate(issuer, ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(ca_identifier, False)
        .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), True)
        .sign(ca_key, hashes.SHA256())
    )
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    addresses = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(_HOST))]
    server = (
        certificate(name, server_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(x509.SubjectAlternativeName(addresses), False)
        .sign(ca_key, hashes.SHA256())
    )
    for file, key in (("ca.key", ca_key), ("server.key", server_key)):
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_atomic(folder / file, pem, mode=0o600)
    write_atomic(folder / "ca.pem", ca.public_bytes(Encoding.PEM))
    write_atomic(folder / "server.pem", server.public_bytes(Encoding.PEM))

"""Label Studio, in the environment of its own that set-up makes: its Django-era pins fit no other.

Set-up leaves an empty, already migrated database beside it, and every workspace begins with a copy:
migrating takes half a minute or more, copying nothing. Users, organisation and tokens are made at
a workspace's first start, so no two workspaces share a secret.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets
import shutil
import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import ServiceError
from workbench.services import credentials, ports, prepared, wire
from workbench.services.embedded import Say, Server
from workbench.services.state import folder_of
from workbench.workspace import Workspace, replacing

ENVIRONMENT = ".venv-label-studio"
ENVIRONMENT_VARIABLE = "WORKBENCH_LABEL_STUDIO_ENVIRONMENT"
EMAIL = "admin@workbench.local"
PASSWORD = "label-studio-password"
TOKEN = "label-studio-token"
_TOKEN_BYTES = 30  # 40 characters, the most that its token column holds
_HASH_ROUNDS = 1_000_000  # as Django 5.2 does by itself
_UPLOAD_LIMIT = 100_000
_FILES = ("AWS_CA_BUNDLE", "GOOGLE_APPLICATION_CREDENTIALS", "REQUESTS_CA_BUNDLE")


@dataclass(frozen=True)
class Credentials:
    """How to reach Label Studio as its administrator. ``password`` only for a server of ours."""

    url: str
    email: str | None
    token: str
    token_file: Path | None
    password_file: Path | None = None

    def __repr__(self) -> str:
        # A traceback or a notebook cell must not print the token.
        return f"Credentials(url={self.url!r}, email={self.email!r}, token=<hidden>)"


class LabelStudio(Server):
    name = "label-studio"
    patience = 300.0  # without the migrated copy it creates 80 s worth of tables
    # What it signs the addresses of frames in a bucket with, by the names that it reads.
    inherits = (
        "AWS_*",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "AZURE_BLOB_ACCOUNT_NAME",
        "AZURE_BLOB_ACCOUNT_KEY",
        # How it reaches the bucket from a company's network. Not HTTP_PROXY: its webhooks go to
        # this machine.
        "HTTPS_PROXY",
        "https_proxy",
        "NO_PROXY",
        "no_proxy",
        "REQUESTS_CA_BUNDLE",
    )

    def prepare(self, place: Workspace, say: Say) -> None:
        folder = folder_of(place, self.name)
        database = folder / "data" / prepared.DATABASE
        database.parent.mkdir(parents=True, exist_ok=True)
        place.media.mkdir(parents=True, exist_ok=True)
        fresh = not database.exists()
        lost = any(not credentials.path_of(place, name).exists() for name in (PASSWORD, TOKEN))
        password = credentials.ensure(place, PASSWORD)
        token = credentials.ensure(place, TOKEN, random_bytes=_TOKEN_BYTES)
        if lost and not fresh:
            say("label-studio: its secrets were lost; the administrator gets new ones")
            replace_secrets(database, password, token)
        if fresh:
            template = prepared.template_of(environment_folder())
            if template.is_file():
                with replacing(database, mode=0o600) as temporary:
                    shutil.copyfile(template, temporary)
            else:
                say("label-studio: no prepared database, so its first start takes a minute or more")

    def command(self, place: Workspace, port: int) -> list[str]:
        program = environment_folder() / "bin" / "label-studio"
        data = folder_of(place, self.name) / "data"
        return [
            *(str(program), "start", "--no-browser", "--internal-host", ports.LOOPBACK),
            *("--port", str(port), "--data-dir", str(data)),
        ]

    def variables(self, place: Workspace, port: int) -> dict[str, str]:
        """Secrets go in here and not into the arguments, which every user of a machine can list."""
        # Files named from the caller's folder: the server runs in another.
        named = {name: os.environ[name] for name in _FILES if os.environ.get(name)}
        return {
            **{name: str(Path(file).expanduser().absolute()) for name, file in named.items()},
            **prepared.quiet(folder_of(place, self.name) / "data"),
            "LABEL_STUDIO_HOST": self.url(port),
            "LABEL_STUDIO_USERNAME": EMAIL,
            "LABEL_STUDIO_PASSWORD": credentials.ensure(place, PASSWORD),
            "LABEL_STUDIO_USER_TOKEN": credentials.ensure(place, TOKEN, random_bytes=_TOKEN_BYTES),
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
            # Else a webhook to this machine, which is where everything runs, is refused.
            "SSRF_PROTECTION_ENABLED": "false",
            "DATA_UPLOAD_MAX_NUMBER_FILES": str(_UPLOAD_LIMIT),
            # A storage has to lie below this folder: nothing but media does, least of all secrets.
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(place.served.resolve()),
            "LOG_LEVEL": "WARNING",
        }

    def url(self, port: int) -> str:
        return f"http://{ports.LOOPBACK}:{port}"

    def answers(self, port: int) -> bool:
        return wire.http_ok(f"{self.url(port)}/health", timeout=5.0)

    def credentials(self, place: Workspace) -> Path | None:
        return credentials.path_of(place, PASSWORD)


def environment_folder() -> Path:
    """Where Label Studio is installed: beside the package, or beside the running environment.

    Raises:
        ServiceError: It is nowhere.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    checkout = Path(__file__).resolve().parents[2]
    beside = (checkout / ENVIRONMENT, Path(sys.prefix).parent / ENVIRONMENT)
    places = (Path(named),) if named else beside
    for folder in places:
        if (folder / "bin" / "label-studio").is_file():
            return folder
    raise ServiceError(
        "Label Studio is not installed",
        where=places[0],
        hint="Run `make setup`, or set LABEL_STUDIO_URL and LABEL_STUDIO_TOKEN to use another one",
    )


def replace_secrets(database: Path, password: str, token: str) -> None:
    """Give the administrator a new password and token, while the server is stopped.

    Label Studio applies both only when it creates the user, so lost files would lock us out.
    """
    salt = secrets.token_urlsafe(16)
    derived = hashlib.pbkdf2_hmac("sha256", password.encode(), salt.encode(), _HASH_ROUNDS)
    encoded = f"pbkdf2_sha256${_HASH_ROUNDS}${salt}${base64.b64encode(derived).decode()}"
    with contextlib.closing(sqlite3.connect(database)) as link, link:
        link.execute("UPDATE htx_user SET password = ? WHERE email = ?", (encoded, EMAIL))
        link.execute(
            "UPDATE authtoken_token SET key = ?"
            " WHERE user_id = (SELECT id FROM htx_user WHERE email = ?)",
            (token, EMAIL),
        )

"""The servers that a workspace starts: mongod for FiftyOne, MLflow, Label Studio."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.util
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from workbench.core import credentials
from workbench.core.errors import ServiceError
from workbench.core.workspace import Workspace, atomic_replace
from workbench.services import label_studio_database, probes
from workbench.services.lifecycle import MessageCallback, Server, service_folder


class MongodServer(Server):
    name = "mongod"
    patience = 60.0  # recovery from the journal after a kill included

    def prepare(self, workspace: Workspace, say: MessageCallback) -> None:
        (service_folder(workspace, self.name) / "data").mkdir(parents=True, exist_ok=True)

    def command(self, workspace: Workspace, port: int) -> list[str]:
        data = service_folder(workspace, self.name) / "data"
        return [
            str(mongod_path()),
            *("--dbpath", str(data), "--port", str(port), "--bind_ip", probes.LOOPBACK),
            *("--nounixsocket", "--wiredTigerCacheSizeGB", "0.5", "--quiet"),
        ]

    def url(self, port: int) -> str:
        # Without journal=true a write is acknowledged up to 100 ms before it is on disk.
        return f"mongodb://{probes.LOOPBACK}:{port}/?journal=true"

    def answers(self, port: int) -> bool:
        return probes.mongod_ok(port)


def mongod_path() -> Path:
    """The mongod that came with FiftyOne's database package, else the one on the search path.

    Raises:
        ServiceError: There is none.
    """
    # Found without running `fiftyone`, whose import takes seconds.
    package = importlib.util.find_spec("fiftyone")
    for folder in (package.submodule_search_locations or []) if package else []:
        candidate = Path(folder) / "db" / "bin" / "mongod"
        if candidate.is_file():
            return candidate
    found = shutil.which("mongod")
    if found is None:
        raise ServiceError(
            "There is no mongod on this machine",
            where="fiftyone/db/bin/mongod",
            hint="Run `make setup`; where no wheel fits, install MongoDB 6 or later",
        )
    return Path(found)


def mongod_version() -> str:
    """What ``mongod --version`` says first, which proves that it can run here.

    Raises:
        ServiceError: It is missing or does not run.
    """
    program = mongod_path()
    try:
        said = subprocess.run(
            [str(program), "--version"], capture_output=True, check=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        raise ServiceError(
            f"mongod does not run on this machine: {reason.strip()}",
            where=program,
            hint="Its wheel needs libssl 3 and x86-64 Linux; elsewhere install MongoDB 6 or later",
        ) from error
    return said.stdout.splitlines()[0]


# ---- MLflow's tracking server on SQLite, artifacts served from its own folder.


class MLflowServer(Server):
    name = "mlflow"
    patience = 180.0  # imports and the first creation of its tables

    def prepare(self, workspace: Workspace, say: MessageCallback) -> None:
        (service_folder(workspace, self.name) / "artifacts").mkdir(parents=True, exist_ok=True)

    def command(self, workspace: Workspace, port: int) -> list[str]:
        folder = service_folder(workspace, self.name)
        # One process creates the tables, before any worker starts: several at once on an empty
        # SQLite file fail. Everybody else goes through HTTP.
        return [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", probes.LOOPBACK, "--port", str(port)),
            *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
            *("--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"),
        ]

    def variables(self, workspace: Workspace, port: int) -> dict[str, str]:
        return {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # Its background jobs (a queue of its own and more processes) are not used here.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }

    def url(self, port: int) -> str:
        return f"http://{probes.LOOPBACK}:{port}"

    def answers(self, port: int) -> bool:
        return probes.http_ok(f"{self.url(port)}/health")


# ---- Label Studio, in the environment of its own that set-up makes: its Django-era pins fit no other.
#
# Set-up leaves an empty, already migrated database beside it, and every workspace begins with a copy:
# migrating takes half a minute or more, copying nothing. Users, organisation and tokens are made at
# a workspace's first start, so no two workspaces share a secret.


LABEL_STUDIO_ENVIRONMENT = ".venv-label-studio"
LABEL_STUDIO_ENVIRONMENT_VARIABLE = "WORKBENCH_LABEL_STUDIO_ENVIRONMENT"
ADMIN_EMAIL = "admin@workbench.local"
ADMIN_PASSWORD = "label-studio-password"
ADMIN_TOKEN = "label-studio-token"
_TOKEN_BYTES = 30  # 40 characters, the most that its token column holds
_HASH_ROUNDS = 1_000_000  # as Django 5.2 does by itself
_UPLOAD_LIMIT = 100_000
_FILE_VARIABLES = ("AWS_CA_BUNDLE", "GOOGLE_APPLICATION_CREDENTIALS", "REQUESTS_CA_BUNDLE")


@dataclass(frozen=True)
class LabelStudioAdmin:
    """How to reach Label Studio as its administrator. ``password`` only for a server of ours."""

    url: str
    email: str | None
    token: str
    token_file: Path | None
    password_file: Path | None = None

    def __repr__(self) -> str:
        # A traceback or a notebook cell must not print the token.
        return f"Credentials(url={self.url!r}, email={self.email!r}, token=<hidden>)"


class LabelStudioServer(Server):
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

    def prepare(self, workspace: Workspace, say: MessageCallback) -> None:
        folder = service_folder(workspace, self.name)
        database = folder / "data" / label_studio_database.DATABASE
        database.parent.mkdir(parents=True, exist_ok=True)
        workspace.media.mkdir(parents=True, exist_ok=True)
        fresh = not database.exists()
        lost = any(
            not credentials.secret_path(workspace, name).exists()
            for name in (ADMIN_PASSWORD, ADMIN_TOKEN)
        )
        password = credentials.ensure_secret(workspace, ADMIN_PASSWORD)
        token = credentials.ensure_secret(workspace, ADMIN_TOKEN, random_bytes=_TOKEN_BYTES)
        if lost and not fresh:
            say("label-studio: its secrets were lost; the administrator gets new ones")
            replace_admin_secrets(database, password, token)
        if fresh:
            template = label_studio_database.template_path(label_studio_environment())
            if template.is_file():
                with atomic_replace(database, mode=0o600) as temporary:
                    shutil.copyfile(template, temporary)
            else:
                say("label-studio: no prepared database, so its first start takes a minute or more")

    def command(self, workspace: Workspace, port: int) -> list[str]:
        program = label_studio_environment() / "bin" / "label-studio"
        data = service_folder(workspace, self.name) / "data"
        return [
            *(str(program), "start", "--no-browser", "--internal-host", probes.LOOPBACK),
            *("--port", str(port), "--data-dir", str(data)),
        ]

    def variables(self, workspace: Workspace, port: int) -> dict[str, str]:
        """Secrets go in here and not into the arguments, which every user of a machine can list."""
        # Files named from the caller's folder: the server runs in another.
        named = {name: os.environ[name] for name in _FILE_VARIABLES if os.environ.get(name)}
        return {
            **{name: str(Path(file).expanduser().absolute()) for name, file in named.items()},
            **label_studio_database.private_settings(service_folder(workspace, self.name) / "data"),
            "LABEL_STUDIO_HOST": self.url(port),
            "LABEL_STUDIO_USERNAME": ADMIN_EMAIL,
            "LABEL_STUDIO_PASSWORD": credentials.ensure_secret(workspace, ADMIN_PASSWORD),
            "LABEL_STUDIO_USER_TOKEN": credentials.ensure_secret(
                workspace, ADMIN_TOKEN, random_bytes=_TOKEN_BYTES
            ),
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
            # Else a webhook to this machine, which is where everything runs, is refused.
            "SSRF_PROTECTION_ENABLED": "false",
            "DATA_UPLOAD_MAX_NUMBER_FILES": str(_UPLOAD_LIMIT),
            # A storage has to lie below this folder: nothing but media does, least of all secrets.
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(workspace.served.resolve()),
            "LOG_LEVEL": "WARNING",
        }

    def url(self, port: int) -> str:
        return f"http://{probes.LOOPBACK}:{port}"

    def answers(self, port: int) -> bool:
        return probes.http_ok(f"{self.url(port)}/health", timeout=5.0)

    def credentials(self, workspace: Workspace) -> Path | None:
        return credentials.secret_path(workspace, ADMIN_PASSWORD)


def label_studio_environment() -> Path:
    """Where Label Studio is installed: beside the package, or beside the running environment.

    Raises:
        ServiceError: It is nowhere.
    """
    named = os.environ.get(LABEL_STUDIO_ENVIRONMENT_VARIABLE)
    checkout = Path(__file__).resolve().parents[2]
    beside = (
        checkout / LABEL_STUDIO_ENVIRONMENT,
        Path(sys.prefix).parent / LABEL_STUDIO_ENVIRONMENT,
    )
    places = (Path(named),) if named else beside
    for folder in places:
        if (folder / "bin" / "label-studio").is_file():
            return folder
    raise ServiceError(
        "Label Studio is not installed",
        where=places[0],
        hint="Run `make setup`, or set LABEL_STUDIO_URL and LABEL_STUDIO_TOKEN to use another one",
    )


def replace_admin_secrets(database: Path, password: str, token: str) -> None:
    """Give the administrator a new password and token, while the server is stopped.

    Label Studio applies both only when it creates the user, so lost files would lock us out.
    """
    salt = secrets.token_urlsafe(16)
    derived = hashlib.pbkdf2_hmac("sha256", password.encode(), salt.encode(), _HASH_ROUNDS)
    encoded = f"pbkdf2_sha256${_HASH_ROUNDS}${salt}${base64.b64encode(derived).decode()}"
    with contextlib.closing(sqlite3.connect(database)) as link, link:
        link.execute("UPDATE htx_user SET password = ? WHERE email = ?", (encoded, ADMIN_EMAIL))
        link.execute(
            "UPDATE authtoken_token SET key = ?"
            " WHERE user_id = (SELECT id FROM htx_user WHERE email = ?)",
            (token, ADMIN_EMAIL),
        )

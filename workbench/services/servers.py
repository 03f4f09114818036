"""The servers that a workspace starts: mongod for FiftyOne, MLflow, Label Studio."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil

from workbench.core import credentials
from workbench.core.errors import ServiceError
from workbench.core.workspace import Workspace, atomic_replace, write_atomic
from workbench.services import label_studio_database, lifecycle, mlflow_app, probes
from workbench.services.lifecycle import MessageCallback, Server, service_folder

__all__ = ["ADMIN_EMAIL"]

ADMIN_EMAIL = "admin@workbench.local"
ADMIN_PASSWORD = "label-studio-password"  # names of secrets, see workbench.core.credentials
ADMIN_TOKEN = "label-studio-token"
MLFLOW_PASSWORD = "mlflow-password"
LABEL_STUDIO_ENVIRONMENT = ".venv-label-studio"
LABEL_STUDIO_ENVIRONMENT_VARIABLE = "WORKBENCH_LABEL_STUDIO_ENVIRONMENT"
_MLFLOW_APP = "workbench"
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]
_MAX_SOCKET_PATH = 103  # bytes; Linux takes 107, macOS 103
_TOKEN_BYTES = 30  # 40 characters, the most that Label Studio's database holds
_HASH_ROUNDS = 1_000_000  # the default of Django 5.2
_UPLOAD_LIMIT = 100_000
_DAMAGE_SIGNS = ("corrupt", "--repair", "wt_panic", "fatal turtle file", "wt_try_salvage")
_FILE_VARIABLES = ("AWS_CA_BUNDLE", "GOOGLE_APPLICATION_CREDENTIALS", "REQUESTS_CA_BUNDLE")


class MongodServer(Server):
    """The database of FiftyOne.

    FiftyOne itself would join any mongod of the same user; this one has its own data, and listens
    on a Unix socket that only its owner can open.
    """

    name = "mongod"
    start_timeout_s = 60.0  # includes recovery from the journal after a kill

    def prepare(self, workspace: Workspace, progress: MessageCallback) -> None:
        (service_folder(workspace, self.name) / "data").mkdir(parents=True, exist_ok=True)
        folder = self._socket(workspace).parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise ServiceError(
                "the folder of mongod's socket is a link, or belongs to somebody else",
                where=folder,
                hint="Remove it, or set TMPDIR to a folder of your own",
            )
        folder.chmod(0o700)

    def command(self, workspace: Workspace, port: int) -> list[str]:
        data = service_folder(workspace, self.name) / "data"
        # It has no port then, and --nounixsocket only leaves out a second socket below /tmp.
        return [
            str(mongod_path()),
            *("--dbpath", str(data), "--bind_ip", str(self._socket(workspace))),
            *("--port", str(port), "--nounixsocket"),
            *("--wiredTigerCacheSizeGB", "0.5", "--quiet"),
        ]

    def url(self, workspace: Workspace, port: int) -> str:
        # Without journal=true a write is acknowledged up to 100 ms before it is on disk.
        return f"mongodb://{quote(str(self._socket(workspace)), safe='')}/?journal=true"

    def answers(self, workspace: Workspace, port: int) -> bool:
        return probes.mongod_ok(str(self._socket(workspace)))

    def listens(self, process: psutil.Process, workspace: Workspace, port: int) -> bool:
        addresses = {str(link.laddr) for link in process.net_connections(kind="unix")}
        return str(self._socket(workspace)) in addresses

    def _socket(self, workspace: Workspace) -> Path:
        """Its socket, in a folder of mode 0700.

        The system limits the length of its path, and mongod splits it at colons and commas: in a
        workspace with such a path it lies in the folder of temporary files, under an id that others
        cannot guess.
        """
        path = service_folder(workspace, self.name) / "socket" / "mongod.sock"
        if len(os.fsencode(path)) <= _MAX_SOCKET_PATH and not {":", ","} & set(str(path)):
            return path
        name = f"workbench-{lifecycle.workspace_id(workspace)}"
        return Path(tempfile.gettempdir()) / name / "mongod.sock"

    def explain_failure(self, workspace: Workspace, log: str) -> tuple[str, str] | None:
        errors = _mongod_errors(log)
        if not errors:
            return None
        reason = errors[0]
        text = log.lower()
        if "no space left on device" in text:
            return reason, "Free disk space, then run `workbench up`"
        if not any(sign in text for sign in _DAMAGE_SIGNS):
            return reason, "Run `workbench doctor`, or read the whole log"
        data = service_folder(workspace, self.name) / "data"
        return (
            f"its data is damaged ({reason})",
            f"Try `{mongod_path()} --dbpath {data} --repair`. If that fails, move the folder away "
            f"(`mv {data} {data}.damaged`) and run `workbench up`: records are stored elsewhere, "
            "and the next `workbench mine` or run publishes to FiftyOne again. Only tags and views "
            "that were made in FiftyOne since the last run are lost",
        )


def _mongod_errors(log: str) -> list[str]:
    """The different error messages of the last start, in mongod's own words."""
    found: dict[str, None] = {}
    for line in log.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # cut at the beginning of what was read
        if not isinstance(entry, dict):
            continue
        if entry.get("msg") == "MongoDB starting":
            found.clear()
        if entry.get("s") in ("E", "F") and entry.get("c") in ("WT", "STORAGE", "CONTROL"):
            attributes = entry.get("attr") or {}
            inner = attributes.get("message") or attributes.get("error")
            words = inner.get("msg", "") if isinstance(inner, dict) else str(inner or "")
            message = " ".join((words or str(entry.get("msg"))).split())
            if not message.startswith("Got signal"):
                found.setdefault(message)
    return list(found)


def mongod_path() -> Path:
    """The mongod of FiftyOne's database package, else the one in ``PATH``.

    Raises:
        ServiceError: Neither exists.
    """
    # Found without importing `fiftyone`, which takes seconds.
    package = importlib.util.find_spec("fiftyone")
    for folder in (package.submodule_search_locations or []) if package else []:
        candidate = Path(folder) / "db" / "bin" / "mongod"
        if candidate.is_file():
            return candidate
    found = shutil.which("mongod")
    if found is None:
        raise ServiceError(
            "mongod is not installed",
            where="fiftyone/db/bin/mongod",
            hint="Run `make setup`, or install MongoDB 6 or later",
        )
    return Path(found)


def mongod_version() -> str:
    """First line of ``mongod --version``, which proves that it can run on this machine.

    Raises:
        ServiceError: It is not installed or does not run.
    """
    program = mongod_path()
    try:
        done = subprocess.run(
            [str(program), "--version"], capture_output=True, check=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        raise ServiceError(
            f"mongod does not run on this machine: {reason.strip()}",
            where=program,
            hint="It needs libssl 3 and x86-64 Linux; otherwise install MongoDB 6 or later",
        ) from error
    return done.stdout.splitlines()[0]


class MLflowServer(Server):
    """MLflow's tracking server on SQLite; it also serves the artifacts."""

    name = "mlflow"
    start_timeout_s = 180.0  # includes imports and the first creation of its tables

    def prepare(self, workspace: Workspace, progress: MessageCallback) -> None:
        folder = service_folder(workspace, self.name)
        (folder / "artifacts").mkdir(parents=True, exist_ok=True)
        credentials.ensure_secret(workspace, MLFLOW_PASSWORD)
        # MLflow finds its apps among installed packages: a folder like this is one.
        package = self._plugin(workspace) / "workbench_mlflow-1.dist-info"
        package.mkdir(parents=True, exist_ok=True)
        description = "Metadata-Version: 2.1\nName: workbench-mlflow\nVersion: 1\n"
        write_atomic(package / "METADATA", description.encode())
        entry = f"[mlflow.app]\n{_MLFLOW_APP} = {mlflow_app.__name__}:app\n"
        write_atomic(package / "entry_points.txt", entry.encode())

    def command(self, workspace: Workspace, port: int) -> list[str]:
        folder = service_folder(workspace, self.name)
        # One worker: several that create the tables of an empty SQLite file at once fail.
        return [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--app-name", _MLFLOW_APP, "--host", probes.LOOPBACK, "--port", str(port)),
            *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
            *("--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"),
        ]

    def variables(self, workspace: Workspace, port: int) -> dict[str, str]:
        return {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # Background jobs are not used here and need more processes.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            # Relative to the server's folder: the path of a workspace may have a colon.
            "PYTHONPATH": os.pathsep.join((self._plugin(workspace).name, str(_PACKAGE_PARENT))),
            mlflow_app.PASSWORD_FILE_VARIABLE: str(
                credentials.secret_path(workspace, MLFLOW_PASSWORD)
            ),
        }

    def answers(self, workspace: Workspace, port: int) -> bool:
        return probes.http_ok(f"{self.url(workspace, port)}/health")

    def credentials(self, workspace: Workspace) -> Path | None:
        return credentials.secret_path(workspace, MLFLOW_PASSWORD)

    def _plugin(self, workspace: Workspace) -> Path:
        return service_folder(workspace, self.name) / "plugin"


@dataclass(frozen=True)
class LabelStudioAdmin:
    """Address and credentials of Label Studio's administrator.

    ``email`` and ``password_file`` are None for an external server.
    """

    url: str
    email: str | None
    token: str
    token_file: Path | None
    password_file: Path | None = None

    def __repr__(self) -> str:
        # A traceback or a notebook cell must not print the token.
        return f"LabelStudioAdmin(url={self.url!r}, email={self.email!r}, token=<hidden>)"


class LabelStudioServer(Server):
    """Label Studio, in a Python environment of its own because its dependencies conflict with ours.

    Setup creates a template database with all tables and no users (migrations take half a minute),
    which every workspace copies. Users and tokens are created at a workspace's first start.
    """

    name = "label-studio"
    start_timeout_s = 300.0  # creating its tables takes 80 s without the template database
    # Credentials with which it signs addresses of frames in a bucket.
    inherited = (
        "AWS_*",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "AZURE_BLOB_ACCOUNT_NAME",
        "AZURE_BLOB_ACCOUNT_KEY",
        # Proxies to reach the bucket. Not HTTP_PROXY: its webhooks go to this machine.
        "HTTPS_PROXY",
        "https_proxy",
        "NO_PROXY",
        "no_proxy",
        "REQUESTS_CA_BUNDLE",
    )

    def prepare(self, workspace: Workspace, progress: MessageCallback) -> None:
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
            progress("label-studio: secrets are missing; the administrator gets new ones")
            replace_admin_secrets(database, password, token)
        if fresh:
            template = label_studio_database.template_path(label_studio_environment())
            if template.is_file():
                with atomic_replace(database, mode=0o600) as temporary:
                    shutil.copyfile(template, temporary)
            else:
                progress("label-studio: creating its database, which takes a minute or more")

    def command(self, workspace: Workspace, port: int) -> list[str]:
        program = label_studio_environment() / "bin" / "label-studio"
        data = service_folder(workspace, self.name) / "data"
        return [
            *(str(program), "start", "--no-browser", "--internal-host", probes.LOOPBACK),
            *("--port", str(port), "--data-dir", str(data)),
        ]

    def variables(self, workspace: Workspace, port: int) -> dict[str, str]:
        """Secrets are passed here: every user of the machine can list arguments."""
        # Made absolute, because the server runs in another folder.
        named = {name: os.environ[name] for name in _FILE_VARIABLES if os.environ.get(name)}
        return {
            **{name: str(Path(file).expanduser().absolute()) for name, file in named.items()},
            **label_studio_database.private_settings(service_folder(workspace, self.name) / "data"),
            "LABEL_STUDIO_HOST": self.url(workspace, port),
            "LABEL_STUDIO_USERNAME": ADMIN_EMAIL,
            "LABEL_STUDIO_PASSWORD": credentials.ensure_secret(workspace, ADMIN_PASSWORD),
            "LABEL_STUDIO_USER_TOKEN": credentials.ensure_secret(
                workspace, ADMIN_TOKEN, random_bytes=_TOKEN_BYTES
            ),
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
            # Otherwise webhooks to this machine are refused.
            "SSRF_PROTECTION_ENABLED": "false",
            "DATA_UPLOAD_MAX_NUMBER_FILES": str(_UPLOAD_LIMIT),
            # Files outside this folder are never served, secrets in particular.
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(workspace.served.resolve()),
            "LOG_LEVEL": "WARNING",
        }

    def answers(self, workspace: Workspace, port: int) -> bool:
        return probes.http_ok(f"{self.url(workspace, port)}/health", timeout_s=5.0)

    def credentials(self, workspace: Workspace) -> Path | None:
        return credentials.secret_path(workspace, ADMIN_PASSWORD)


def label_studio_environment() -> Path:
    """The environment of Label Studio: beside the package, or beside the running environment.

    Raises:
        ServiceError: Label Studio is not installed.
    """
    configured = os.environ.get(LABEL_STUDIO_ENVIRONMENT_VARIABLE)
    parents = (Path(__file__).resolve().parents[2], Path(sys.prefix).parent)
    folders = [parent / LABEL_STUDIO_ENVIRONMENT for parent in parents]
    if configured:
        folders = [Path(configured)]
    for folder in folders:
        if (folder / "bin" / "label-studio").is_file():
            return folder
    raise ServiceError(
        "Label Studio is not installed",
        where=folders[0],
        hint="Run `make setup`, or set LABEL_STUDIO_URL and LABEL_STUDIO_TOKEN to use another one",
    )


def replace_admin_secrets(database: Path, password: str, token: str) -> None:
    """Set the administrator's password and token in the database of a stopped server.

    Label Studio itself sets them only when it creates the user.
    """
    salt = secrets.token_urlsafe(16)
    derived = hashlib.pbkdf2_hmac("sha256", password.encode(), salt.encode(), _HASH_ROUNDS)
    encoded = f"pbkdf2_sha256${_HASH_ROUNDS}${salt}${base64.b64encode(derived).decode()}"
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "UPDATE htx_user SET password = ? WHERE email = ?", (encoded, ADMIN_EMAIL)
        )
        connection.execute(
            "UPDATE authtoken_token SET key = ?"
            " WHERE user_id = (SELECT id FROM htx_user WHERE email = ?)",
            (token, ADMIN_EMAIL),
        )

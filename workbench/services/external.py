"""Servers that somebody else runs: named by an environment variable, asked, never started."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from workbench.errors import ServiceError
from workbench.services import credentials, wire
from workbench.services.embedded import Server
from workbench.services.state import ServiceState, recall
from workbench.workspace import Workspace

VARIABLES = {
    "mongod": "FIFTYONE_DATABASE_URI",
    "mlflow": "MLFLOW_TRACKING_URI",
    "label-studio": "LABEL_STUDIO_URL",
}
_TOKENS = ("LABEL_STUDIO_TOKEN", "LABEL_STUDIO_API_KEY")


def address(place: Workspace, server: Server) -> str | None:
    """The external server's URL, None when ours is to be used.

    The variables also reach the processes that run under ``services.environment``, where they
    name our own servers; such an address is no external one.
    """
    url = os.environ.get(VARIABLES[server.name], "").strip().rstrip("/")
    facts = recall(place, server.name)
    if not url or (facts is not None and url == server.url(facts.port)):
        return None
    return url


def named(name: str) -> bool:
    """Whether an external server is named for the service ``name``."""
    return bool(os.environ.get(VARIABLES[name], "").strip())


def token() -> str:
    """The token for an external Label Studio, from the environment or from the file named there.

    Raises:
        ServiceError: There is none.
    """
    for name in _TOKENS:
        value = os.environ.get(name, "").strip()
        if value:
            return value
    named = os.environ.get("LABEL_STUDIO_TOKEN_FILE")
    if named:
        return credentials.read(Path(named))
    raise ServiceError(
        "An external Label Studio needs a token",
        where="LABEL_STUDIO_URL",
        hint="Set LABEL_STUDIO_TOKEN, or LABEL_STUDIO_TOKEN_FILE to a file that holds it",
    )


def look(name: str, url: str) -> ServiceState:
    """Ask the server at ``url``; what cannot be asked over the network is taken as it is.

    The answer's ``url`` is for people: a password in it is masked.
    """
    ask = {"mongod": _mongod, "mlflow": _mlflow, "label-studio": _label_studio}[name]
    trouble = ask(url)
    detail = trouble or f"named by {VARIABLES[name]}"
    return ServiceState(name, "broken" if trouble else "external", _presentable(url), detail=detail)


def _mongod(url: str) -> str:
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError

    try:
        with MongoClient[dict[str, object]](url, serverSelectionTimeoutMS=3000) as client:
            client.admin.command("ping")
    except PyMongoError as error:
        return f"it does not answer ({type(error).__name__})"
    return ""


def _mlflow(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        return ""  # a database or a hosted platform: MLflow's own client will tell
    answered = wire.http_status(f"{url}/health", timeout=5.0)
    # A server behind a sign-in answers 401 or 403, and is there.
    return "" if answered in (200, 401, 403) else f"its /health answers {answered or 'nothing'}"


def _label_studio(url: str) -> str:
    answered = wire.http_status(f"{url}/health", timeout=5.0)
    if answered != 200:
        return f"its /health answers {answered or 'nothing'}"
    try:
        token()
    except ServiceError as error:
        return str(error)
    return ""


def _presentable(url: str) -> str:
    """The URL without a password, for screens and logs."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user, at, hosts = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***{at}{hosts}"))

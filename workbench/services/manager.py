"""All servers together: local or external, up, down, status, and their environment variables."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

from workbench.core import credentials
from workbench.core.errors import ParameterError, ServiceError
from workbench.core.workspace import HOME_VARIABLE, Workspace
from workbench.services import lifecycle, mlflow_app, probes
from workbench.services.lifecycle import MessageCallback, Server, ServiceStatus
from workbench.services.servers import (
    ADMIN_EMAIL,
    ADMIN_PASSWORD,
    ADMIN_TOKEN,
    MLFLOW_PASSWORD,
    LabelStudioAdmin,
    LabelStudioServer,
    MLflowServer,
    MongodServer,
)

__all__ = [
    "SERVICE_NAMES",
    "down",
    "environment",
    "label_studio_admin",
    "status",
    "tracking_address",
    "up",
]

T = TypeVar("T")

_SERVERS: dict[str, Server] = {
    server.name: server for server in (MongodServer(), MLflowServer(), LabelStudioServer())
}
SERVICE_NAMES = tuple(_SERVERS)

EXTERNAL_VARIABLES = {
    "mongod": "FIFTYONE_DATABASE_URI",
    "mlflow": "MLFLOW_TRACKING_URI",
    "label-studio": "LABEL_STUDIO_URL",
}
"""Environment variables that name an external server, by service."""

LOCAL_VARIABLE = "WORKBENCH_LOCAL_SERVERS"
"""Addresses in `EXTERNAL_VARIABLES` that a workspace handed on, not a person.

A terminal of JupyterLab has those of its workspace. To another workspace they are nothing: without
this, a copy would use the servers of its original as external ones.
"""

_TOKEN_VARIABLES = ("LABEL_STUDIO_TOKEN", "LABEL_STUDIO_API_KEY")
_TOKEN_FILE_VARIABLE = "LABEL_STUDIO_TOKEN_FILE"


def up(
    workspace: Workspace,
    names: Sequence[str] = SERVICE_NAMES,
    *,
    progress: MessageCallback = lambda message: None,
) -> dict[str, ServiceStatus]:
    """Start the servers that are not running, concurrently. External servers are only checked.

    Args:
        names: Services to start.
        progress: Called with a message at each start.

    Returns:
        The status of each service by name.

    Raises:
        ServiceError: A server did not start, or an external one cannot be used. The others keep
            running.
    """
    servers = [_server_named(name) for name in names]
    with ThreadPoolExecutor(max_workers=len(servers) or 1) as pool:
        starts = [(s.name, pool.submit(_start_or_check, s, workspace, progress)) for s in servers]
    failures = [error for _, start in starts if (error := start.exception()) is not None]
    if len(failures) == 1:
        raise failures[0]
    if failures:
        lines = "\n".join(f"- {failure}" for failure in failures)
        raise ServiceError(f"{len(failures)} servers did not start:\n{lines}")
    return {name: start.result() for name, start in starts}


def down(workspace: Workspace, names: Sequence[str] = SERVICE_NAMES) -> list[str]:
    """Stop the servers of this workspace; external servers are not touched.

    Returns:
        Names of the services that were running.
    """
    running = _for_each(names, lambda server: lifecycle.stop_server(server, workspace))
    return [name for name, was_running in running.items() if was_running]


def status(workspace: Workspace, names: Sequence[str] = SERVICE_NAMES) -> dict[str, ServiceStatus]:
    """The status of each service by name; changes nothing and imports no SDK."""

    def observe(server: Server) -> ServiceStatus:
        url = external_address(workspace, server)
        if url is None:
            return lifecycle.observe_server(server, workspace)
        return check_external(server.name, url)

    return _for_each(names, observe)


def environment(
    workspace: Workspace,
    names: Sequence[str] = SERVICE_NAMES,
    *,
    passwords: bool = False,
    inherited: bool = False,
) -> dict[str, str]:
    """Environment variables that make a process use these servers.

    They contain no secret, except a password in the address of an external server.

    Args:
        names: Services to use.
        passwords: Add MLflow's password, which its client takes from no file. Only for processes
            whose variables are stored nowhere.
        inherited: Add `LOCAL_VARIABLE`. For processes that may use another workspace, too.

    Raises:
        ServiceError: One of the servers is not running.
    """
    variables = {HOME_VARIABLE: str(workspace.root)}
    local = set(os.environ.get(LOCAL_VARIABLE, "").split()) if inherited else set[str]()
    for name, current in status(workspace, names).items():
        if not current.usable or current.url is None:
            raise ServiceError(
                f"{name} is {current.state}: {current.detail}",
                where=current.url,
                hint="Run `workbench up`",
            )
        # The password in the address of an external server is masked in its status.
        url = external_address(workspace, _SERVERS[name]) or current.url
        if current.state == "running":
            local.add(url)
        if name == MongodServer.name:
            variables |= _fiftyone_variables(workspace, url)
        elif name == MLflowServer.name:
            variables |= {"MLFLOW_TRACKING_URI": url, "MLFLOW_DISABLE_TELEMETRY": "true"}
            if passwords and current.state == "running":
                variables |= _mlflow_login(workspace)
        else:
            variables["LABEL_STUDIO_URL"] = url
            token_file: Path | None = credentials.secret_path(workspace, ADMIN_TOKEN)
            if current.state == "external":
                token_file = _external_token_file()
            if token_file is not None:
                variables[_TOKEN_FILE_VARIABLE] = str(token_file)
    return {**variables, LOCAL_VARIABLE: " ".join(sorted(local))} if inherited else variables


def tracking_address(workspace: Workspace) -> str:
    """Address of MLflow's server, with user and password if it was started here.

    Raises:
        ServiceError: It is not running.
    """
    variables = environment(workspace, (MLflowServer.name,), passwords=True)
    url, password = variables["MLFLOW_TRACKING_URI"], variables.get("MLFLOW_TRACKING_PASSWORD")
    if password is None:
        return url
    parts = urlsplit(_without_login(url))
    return urlunsplit(parts._replace(netloc=f"{mlflow_app.USER}:{password}@{parts.netloc}"))


def mlflow_login(workspace: Workspace, url: str) -> dict[str, str]:
    """Environment variables with user and password of MLflow at ``url``.

    Empty unless that is the address of the server started here, running or not.
    """
    own = _is_own(workspace, _SERVERS[MLflowServer.name], url)
    return _mlflow_login(workspace) if own else {}


def label_studio_admin(workspace: Workspace) -> LabelStudioAdmin:
    """Address and credentials of Label Studio's administrator, local or external.

    Raises:
        ServiceError: Label Studio is not running, or an external one has no token.
    """
    server = _SERVERS[LabelStudioServer.name]
    url = external_address(workspace, server)
    if url is not None:
        return LabelStudioAdmin(url, None, _external_token(), _external_token_file())
    current = lifecycle.observe_server(server, workspace)
    # The token is not for whoever listens on the port of a stopped server. A busy one may be slow.
    listening = current.state == "running" or lifecycle.is_listening(server, workspace)
    if not listening or current.url is None:
        raise ServiceError(
            f"Label Studio is {current.state}: {current.detail}",
            where=current.url,
            hint="Run `workbench up`",
        )
    token_file = credentials.secret_path(workspace, ADMIN_TOKEN)
    return LabelStudioAdmin(
        url=current.url,
        email=ADMIN_EMAIL,
        token=credentials.read_secret(token_file),
        token_file=token_file,
        password_file=credentials.secret_path(workspace, ADMIN_PASSWORD),
    )


def is_external(name: str) -> bool:
    """Whether an external server is configured for the service ``name``."""
    return bool(_configured_address(name))


def external_address(workspace: Workspace, server: Server) -> str | None:
    """URL of the external server; None if the local one is used.

    `environment` sets the same variables to the addresses of local servers, so a local address
    does not count as external, whichever workspace it is of.
    """
    url = _configured_address(server.name)
    return None if not url or _is_own(workspace, server, url) else url


def _configured_address(name: str) -> str:
    """The address that a person set for the service ``name``; empty without one."""
    url = os.environ.get(EXTERNAL_VARIABLES[name], "").strip()
    return "" if url in os.environ.get(LOCAL_VARIABLE, "").split() else url.rstrip("/")


def check_external(name: str, url: str) -> ServiceStatus:
    """Status of the external server at ``url``, with the password in its address masked."""
    checks = {
        MongodServer.name: _check_mongod,
        MLflowServer.name: _check_mlflow,
        LabelStudioServer.name: _check_label_studio,
    }
    problem = checks[name](url)
    return ServiceStatus(
        name,
        "broken" if problem else "external",
        _mask_password(url),
        detail=problem or f"set by {EXTERNAL_VARIABLES[name]}",
    )


def _for_each(names: Sequence[str], action: Callable[[Server], T]) -> dict[str, T]:
    servers = [_server_named(name) for name in names]
    with ThreadPoolExecutor(max_workers=len(servers) or 1) as pool:
        results = pool.map(action, servers)
        return {server.name: result for server, result in zip(servers, results, strict=True)}


def _server_named(name: str) -> Server:
    if name not in _SERVERS:
        raise ParameterError(
            f"unknown service {name!r}", hint=f"Choose from {', '.join(SERVICE_NAMES)}"
        )
    return _SERVERS[name]


def _start_or_check(
    server: Server, workspace: Workspace, progress: MessageCallback
) -> ServiceStatus:
    url = external_address(workspace, server)
    if url is None:
        return lifecycle.start_server(server, workspace, progress)
    current = check_external(server.name, url)
    if not current.usable:
        raise ServiceError(
            f"cannot use the external {server.name}: {current.detail}",
            where=current.url,
            hint=f"Correct {EXTERNAL_VARIABLES[server.name]}, or unset it to start one here",
        )
    return current


def _external_token() -> str:
    for name in _TOKEN_VARIABLES:
        value = os.environ.get(name, "").strip()
        if value:
            return value
    file = _external_token_file()
    if file is not None:
        return credentials.read_secret(file)
    raise ServiceError(
        "an external Label Studio needs a token",
        where="LABEL_STUDIO_URL",
        hint="Set LABEL_STUDIO_TOKEN, or LABEL_STUDIO_TOKEN_FILE to a file that contains it",
    )


def _external_token_file() -> Path | None:
    path = os.environ.get(_TOKEN_FILE_VARIABLE)
    return Path(path) if path else None


def _check_mongod(url: str) -> str:
    """What is wrong with the server; nothing if it can be used."""
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError

    try:
        with MongoClient[dict[str, object]](url, serverSelectionTimeoutMS=3000) as client:
            client.admin.command("ping")
    except PyMongoError as error:
        return f"no answer ({type(error).__name__})"
    return ""


def _check_mlflow(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        return ""  # a database or a hosted platform, which only MLflow's client can check
    code = probes.http_status(f"{url}/health", timeout_s=5.0)
    # A server that requires a login returns 401 or 403.
    return "" if code in (200, 401, 403) else _health_problem(code)


def _check_label_studio(url: str) -> str:
    code = probes.http_status(f"{url}/health", timeout_s=5.0)
    if code != 200:
        return _health_problem(code)
    try:
        _external_token()
    except ServiceError as error:
        return str(error)
    return ""


def _health_problem(code: int) -> str:
    return f"/health returned status {code}" if code else "/health did not answer"


def _mask_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user, at, hosts = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***{at}{hosts}"))


def _without_login(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _is_own(workspace: Workspace, server: Server, url: str) -> bool:
    info = lifecycle.read_process_info(workspace, server.name)
    return info is not None and _without_login(url) == server.url(workspace, info.port)


def _mlflow_login(workspace: Workspace) -> dict[str, str]:
    password = credentials.read_secret(credentials.secret_path(workspace, MLFLOW_PASSWORD))
    return {"MLFLOW_TRACKING_USERNAME": mlflow_app.USER, "MLFLOW_TRACKING_PASSWORD": password}


def _fiftyone_variables(workspace: Workspace, url: str) -> dict[str, str]:
    """FiftyOne's settings: this database, and all of its folders below the workspace."""
    folder = workspace.services / "fiftyone"
    return {
        "FIFTYONE_DATABASE_URI": url,
        "FIFTYONE_DATABASE_NAME": os.environ.get("FIFTYONE_DATABASE_NAME", "workbench"),
        "FIFTYONE_DATABASE_VALIDATION": "false",
        "FIFTYONE_DATABASE_DIR": str(folder / "database"),
        "FIFTYONE_CONFIG_PATH": str(folder / "config.json"),
        "FIFTYONE_APP_CONFIG_PATH": str(folder / "app_config.json"),
        "FIFTYONE_ANNOTATION_CONFIG_PATH": str(folder / "annotation_config.json"),
        "FIFTYONE_BRAIN_CONFIG_PATH": str(folder / "brain_config.json"),
        "FIFTYONE_EVALUATION_CONFIG_PATH": str(folder / "evaluation_config.json"),
        "FIFTYONE_DEFAULT_DATASET_DIR": str(folder / "datasets"),
        "FIFTYONE_DATASET_ZOO_DIR": str(folder / "dataset_zoo"),
        "FIFTYONE_MODEL_ZOO_DIR": str(folder / "model_zoo"),
        "FIFTYONE_PLUGINS_DIR": str(folder / "plugins"),
        "FIFTYONE_DEFAULT_APP_ADDRESS": "127.0.0.1",
        "FIFTYONE_DO_NOT_TRACK": "true",
    }

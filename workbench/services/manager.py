"""All servers together: local or external, up, down, status, and their environment variables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from workbench.core import credentials
from workbench.core.errors import ParameterError, ServiceError
from workbench.core.workspace import HOME_VARIABLE, Workspace
from workbench.services import lifecycle, probes
from workbench.services.lifecycle import MessageCallback, Server, ServiceStatus, read_process_info
from workbench.services.servers import (
    ADMIN_EMAIL,
    ADMIN_PASSWORD,
    ADMIN_TOKEN,
    LabelStudioAdmin,
    LabelStudioServer,
    MLflowServer,
    MongodServer,
)

EXTERNAL_VARIABLES = {
    "mongod": "FIFTYONE_DATABASE_URI",
    "mlflow": "MLFLOW_TRACKING_URI",
    "label-studio": "LABEL_STUDIO_URL",
}
_TOKEN_VARIABLES = ("LABEL_STUDIO_TOKEN", "LABEL_STUDIO_API_KEY")


def external_address(workspace: Workspace, server: Server) -> str | None:
    """The external server's URL, None when ours is to be used.

    The variables also reach the processes that run under ``services.environment``, where they
    name our own servers; such an address is no external one.
    """
    url = os.environ.get(EXTERNAL_VARIABLES[server.name], "").strip().rstrip("/")
    facts = read_process_info(workspace, server.name)
    if not url or (facts is not None and url == server.url(facts.port)):
        return None
    return url


def is_external(name: str) -> bool:
    """Whether an external server is named for the service ``name``."""
    return bool(os.environ.get(EXTERNAL_VARIABLES[name], "").strip())


def external_token() -> str:
    """The token for an external Label Studio, from the environment or from the file named there.

    Raises:
        ServiceError: There is none.
    """
    for name in _TOKEN_VARIABLES:
        value = os.environ.get(name, "").strip()
        if value:
            return value
    named = os.environ.get("LABEL_STUDIO_TOKEN_FILE")
    if named:
        return credentials.read_secret(Path(named))
    raise ServiceError(
        "An external Label Studio needs a token",
        where="LABEL_STUDIO_URL",
        hint="Set LABEL_STUDIO_TOKEN, or LABEL_STUDIO_TOKEN_FILE to a file that holds it",
    )


def check_external(name: str, url: str) -> ServiceStatus:
    """Ask the server at ``url``; what cannot be asked over the network is taken as it is.

    The answer's ``url`` is for people: a password in it is masked.
    """
    ask = {"mongod": _check_mongod, "mlflow": _check_mlflow, "label-studio": _check_label_studio}[
        name
    ]
    trouble = ask(url)
    detail = trouble or f"named by {EXTERNAL_VARIABLES[name]}"
    return ServiceStatus(
        name, "broken" if trouble else "external", _mask_password(url), detail=detail
    )


def _check_mongod(url: str) -> str:
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError

    try:
        with MongoClient[dict[str, object]](url, serverSelectionTimeoutMS=3000) as client:
            client.admin.command("ping")
    except PyMongoError as error:
        return f"it does not answer ({type(error).__name__})"
    return ""


def _check_mlflow(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        return ""  # a database or a hosted platform: MLflow's own client will tell
    answered = probes.http_status(f"{url}/health", timeout=5.0)
    # A server behind a sign-in answers 401 or 403, and is there.
    return "" if answered in (200, 401, 403) else f"its /health answers {answered or 'nothing'}"


def _check_label_studio(url: str) -> str:
    answered = probes.http_status(f"{url}/health", timeout=5.0)
    if answered != 200:
        return f"its /health answers {answered or 'nothing'}"
    try:
        external_token()
    except ServiceError as error:
        return str(error)
    return ""


def _mask_password(url: str) -> str:
    """The URL without a password, for screens and logs."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user, at, hosts = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***{at}{hosts}"))


# ---- All servers together: which are ours and which external, up, down, status, and the variables
# that make a process use them.


_SERVERS: dict[str, Server] = {
    s.name: s for s in (MongodServer(), MLflowServer(), LabelStudioServer())
}
SERVICE_NAMES = tuple(_SERVERS)
TOKEN_FILE_VARIABLE = "LABEL_STUDIO_TOKEN_FILE"


def _ignore_message(_: str) -> None:
    return None


def up(
    workspace: Workspace,
    names: Sequence[str] = SERVICE_NAMES,
    *,
    progress: MessageCallback = _ignore_message,
) -> dict[str, ServiceStatus]:
    """Start what is not running, all at once; what runs already, here or elsewhere, is used.

    Args:
        names: Which of ``NAMES``.
        progress: Called with a line for people at each start.

    Raises:
        ServiceError: One did not come up, or an external one is away. The others stay up.
    """
    servers = [_server_named(name) for name in names]
    with ThreadPoolExecutor(max_workers=len(servers) or 1) as pool:
        starts = [(s.name, pool.submit(_bring_up, s, workspace, progress)) for s in servers]
    failures = [error for _, f in starts if (error := f.exception()) is not None]
    if failures:
        raise failures[0] if len(failures) == 1 else _combined_error(failures)
    return {name: future.result() for name, future in starts}


def down(workspace: Workspace, names: Sequence[str] = SERVICE_NAMES) -> list[str]:
    """Stop what was started here and return the names of those; external servers are left alone."""
    servers = [_server_named(name) for name in names]
    with ThreadPoolExecutor(max_workers=len(servers) or 1) as pool:
        stopped = list(pool.map(lambda server: lifecycle.stop_server(server, workspace), servers))
    return [
        server.name for server, was_running in zip(servers, stopped, strict=True) if was_running
    ]


def status(workspace: Workspace, names: Sequence[str] = SERVICE_NAMES) -> dict[str, ServiceStatus]:
    """Look at each server without changing anything and without importing its SDK."""
    servers = [_server_named(name) for name in names]
    with ThreadPoolExecutor(max_workers=len(servers) or 1) as pool:
        states = pool.map(lambda server: _server_status(server, workspace), servers)
        return {state.name: state for state in states}


def environment(workspace: Workspace, names: Sequence[str] = SERVICE_NAMES) -> dict[str, str]:
    """The variables that make a process use these servers.

    No secret is among them, but for a password that the user put into an external address.

    Raises:
        ServiceError: One of the servers is not running.
    """
    variables = {HOME_VARIABLE: str(workspace.root)}
    for name, state in status(workspace, names).items():
        if not state.usable or state.url is None:
            raise ServiceError(
                f"{name} is {state.state}: {state.detail}",
                where=state.url,
                hint="Run `workbench up`",
            )
        # What is shown of an external address has its password masked; clients need the whole.
        url = external_address(workspace, _SERVERS[name]) or state.url
        if name == MongodServer.name:
            variables |= _fiftyone_variables(workspace, url)
        elif name == MLflowServer.name:
            variables |= {"MLFLOW_TRACKING_URI": url, "MLFLOW_DISABLE_TELEMETRY": "true"}
        else:
            variables["LABEL_STUDIO_URL"] = url
            token = _token_file(workspace, state)
            if token is not None:
                variables[TOKEN_FILE_VARIABLE] = str(token)
    return variables


def label_studio_admin(workspace: Workspace) -> LabelStudioAdmin:
    """Address and token of Label Studio's administrator, of our server or of the external one.

    Raises:
        ServiceError: Nothing was started yet, or an external server came without a token.
    """
    url = external_address(workspace, _SERVERS[LabelStudioServer.name])
    if url is not None:
        return LabelStudioAdmin(url, None, external_token(), _external_token_file())
    facts = read_process_info(workspace, LabelStudioServer.name)
    if facts is None:
        raise ServiceError("Label Studio was never started here", hint="Run `workbench up`")
    token_file = credentials.secret_path(workspace, ADMIN_TOKEN)
    password_file = credentials.secret_path(workspace, ADMIN_PASSWORD)
    url = _SERVERS[LabelStudioServer.name].url(facts.port)
    return LabelStudioAdmin(
        url, ADMIN_EMAIL, credentials.read_secret(token_file), token_file, password_file
    )


def _server_named(name: str) -> Server:
    if name not in _SERVERS:
        raise ParameterError(
            f"There is no service called {name!r}", hint=f"Choose from {', '.join(SERVICE_NAMES)}"
        )
    return _SERVERS[name]


def _bring_up(server: Server, workspace: Workspace, say: MessageCallback) -> ServiceStatus:
    url = external_address(workspace, server)
    if url is None:
        return lifecycle.start_server(server, workspace, say)
    state = check_external(server.name, url)
    if not state.usable:
        raise ServiceError(
            f"The external {server.name} cannot be used: {state.detail}",
            where=state.url,
            hint=f"Correct {EXTERNAL_VARIABLES[server.name]}, or unset it to start one here",
        )
    return state


def _server_status(server: Server, workspace: Workspace) -> ServiceStatus:
    url = external_address(workspace, server)
    return (
        lifecycle.observe_server(server, workspace)
        if url is None
        else check_external(server.name, url)
    )


def _combined_error(failures: Sequence[BaseException]) -> ServiceError:
    lines = "\n".join(f"- {failure}" for failure in failures)
    return ServiceError(f"{len(failures)} servers did not come up:\n{lines}")


def _token_file(workspace: Workspace, state: ServiceStatus) -> Path | None:
    return (
        _external_token_file()
        if state.state == "external"
        else credentials.secret_path(workspace, ADMIN_TOKEN)
    )


def _external_token_file() -> Path | None:
    named = os.environ.get(TOKEN_FILE_VARIABLE)
    return Path(named) if named else None


def _fiftyone_variables(workspace: Workspace, url: str) -> dict[str, str]:
    """FiftyOne's settings: this database, and every folder it writes to below the workspace."""
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

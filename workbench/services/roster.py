"""All servers together: which are ours and which external, up, down, status, and the variables
that make a process use them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from workbench.errors import ParameterError, ServiceError
from workbench.services import credentials, embedded, external
from workbench.services.embedded import Say, Server
from workbench.services.label_studio import EMAIL, PASSWORD, TOKEN, Credentials, LabelStudio
from workbench.services.mlflow_server import MLflow
from workbench.services.mongod import Mongod
from workbench.services.state import ServiceState, recall
from workbench.workspace import HOME_VARIABLE, Workspace

_SERVERS: dict[str, Server] = {s.name: s for s in (Mongod(), MLflow(), LabelStudio())}
NAMES = tuple(_SERVERS)
TOKEN_FILE_VARIABLE = "LABEL_STUDIO_TOKEN_FILE"


def _quiet(_: str) -> None:
    return None


def up(
    place: Workspace, names: Sequence[str] = NAMES, *, progress: Say = _quiet
) -> dict[str, ServiceState]:
    """Start what is not running, all at once; what runs already, here or elsewhere, is used.

    Args:
        names: Which of ``NAMES``.
        progress: Called with a line for people at each start.

    Raises:
        ServiceError: One did not come up, or an external one is away. The others stay up.
    """
    servers = [_server(name) for name in names]
    with ThreadPoolExecutor(max_workers=len(servers) or 1) as pool:
        starts = [(s.name, pool.submit(_bring_up, s, place, progress)) for s in servers]
    failures = [error for _, f in starts if (error := f.exception()) is not None]
    if failures:
        raise failures[0] if len(failures) == 1 else _joined(failures)
    return {name: future.result() for name, future in starts}


def down(place: Workspace, names: Sequence[str] = NAMES) -> list[str]:
    """Stop what was started here and return the names of those; external servers are left alone."""
    servers = [_server(name) for name in names]
    with ThreadPoolExecutor(max_workers=len(servers) or 1) as pool:
        stopped = list(pool.map(lambda server: embedded.stop(server, place), servers))
    return [
        server.name for server, was_running in zip(servers, stopped, strict=True) if was_running
    ]


def status(place: Workspace, names: Sequence[str] = NAMES) -> dict[str, ServiceState]:
    """Look at each server without changing anything and without importing its SDK."""
    servers = [_server(name) for name in names]
    with ThreadPoolExecutor(max_workers=len(servers) or 1) as pool:
        states = pool.map(lambda server: _look(server, place), servers)
        return {state.name: state for state in states}


def environment(place: Workspace, names: Sequence[str] = NAMES) -> dict[str, str]:
    """The variables that make a process use these servers.

    No secret is among them, but for a password that the user put into an external address.

    Raises:
        ServiceError: One of the servers is not running.
    """
    variables = {HOME_VARIABLE: str(place.root)}
    for name, state in status(place, names).items():
        if not state.usable or state.url is None:
            raise ServiceError(
                f"{name} is {state.state}: {state.detail}",
                where=state.url,
                hint="Run `workbench up`",
            )
        # What is shown of an external address has its password masked; clients need the whole.
        url = external.address(place, _SERVERS[name]) or state.url
        if name == Mongod.name:
            variables |= _fiftyone(place, url)
        elif name == MLflow.name:
            variables |= {"MLFLOW_TRACKING_URI": url, "MLFLOW_DISABLE_TELEMETRY": "true"}
        else:
            variables["LABEL_STUDIO_URL"] = url
            token = _token_file(place, state)
            if token is not None:
                variables[TOKEN_FILE_VARIABLE] = str(token)
    return variables


def label_studio_admin(place: Workspace) -> Credentials:
    """Address and token of Label Studio's administrator, of our server or of the external one.

    Raises:
        ServiceError: Nothing was started yet, or an external server came without a token.
    """
    url = external.address(place, _SERVERS[LabelStudio.name])
    if url is not None:
        return Credentials(url, None, external.token(), _named_token_file())
    facts = recall(place, LabelStudio.name)
    if facts is None:
        raise ServiceError("Label Studio was never started here", hint="Run `workbench up`")
    token_file = credentials.path_of(place, TOKEN)
    password_file = credentials.path_of(place, PASSWORD)
    url = _SERVERS[LabelStudio.name].url(facts.port)
    return Credentials(url, EMAIL, credentials.read(token_file), token_file, password_file)


def _server(name: str) -> Server:
    if name not in _SERVERS:
        raise ParameterError(
            f"There is no service called {name!r}", hint=f"Choose from {', '.join(NAMES)}"
        )
    return _SERVERS[name]


def _bring_up(server: Server, place: Workspace, say: Say) -> ServiceState:
    url = external.address(place, server)
    if url is None:
        return embedded.start(server, place, say)
    state = external.look(server.name, url)
    if not state.usable:
        raise ServiceError(
            f"The external {server.name} cannot be used: {state.detail}",
            where=state.url,
            hint=f"Correct {external.VARIABLES[server.name]}, or unset it to start one here",
        )
    return state


def _look(server: Server, place: Workspace) -> ServiceState:
    url = external.address(place, server)
    return embedded.observe(server, place) if url is None else external.look(server.name, url)


def _joined(failures: Sequence[BaseException]) -> ServiceError:
    lines = "\n".join(f"- {failure}" for failure in failures)
    return ServiceError(f"{len(failures)} servers did not come up:\n{lines}")


def _token_file(place: Workspace, state: ServiceState) -> Path | None:
    return _named_token_file() if state.state == "external" else credentials.path_of(place, TOKEN)


def _named_token_file() -> Path | None:
    named = os.environ.get(TOKEN_FILE_VARIABLE)
    return Path(named) if named else None


def _fiftyone(place: Workspace, url: str) -> dict[str, str]:
    """FiftyOne's settings: this database, and every folder it writes to below the workspace."""
    folder = place.services / "fiftyone"
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

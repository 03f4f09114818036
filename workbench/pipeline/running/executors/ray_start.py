"""Starting Ray here, or joining one: settings, second tries, and what is said when it fails."""

from __future__ import annotations

import logging
import secrets
import socket
from typing import Any

from workbench import workspace
from workbench.errors import ServiceError
from workbench.workspace import Workspace

Json = dict[str, Any]

_KNOCK_S = 20.0


def begin(ray: Any, options: Json) -> None:
    """Start or join Ray; a start is tried twice, for on a busy machine its agents come too late."""
    _knock(options["address"])
    for last in (options["address"] != "local", True):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
            return
        except Exception:
            ray.shutdown()
            if last:
                raise


def _knock(address: str) -> None:
    """Raise at once where nobody listens: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S):
            pass


def away(address: str | None, error: Exception) -> ServiceError:
    """The error to raise: Ray could not be started, or reached at ``address``."""
    if address is None:
        return ServiceError(
            f"Ray could not be started: {first_line(error)}",
            hint="On a busy machine it may come up too late: run it again, or leave --executor "
            "ray away",
        )
    return ServiceError(
        f"Ray could not be reached: {first_line(error)}",
        where=address,
        hint="`ray status --address …` says whether a cluster is up; its Ray and Python have to "
        "be those of requirements.lock, and its token has to be at hand",
    )


def settings(place: Workspace, *, local: bool) -> dict[str, str]:
    """Ray's settings, read when it is imported: no telemetry; a local one hears loopback only."""
    always = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    if not local:
        return always
    token = place.secrets / "ray-token"
    if not token.exists():
        workspace.write_atomic(token, secrets.token_hex(32).encode(), mode=0o600)
    return {
        **always,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # Named after the systems where it is the default: no cluster, so 127.0.0.1 it is.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def first_line(error: BaseException) -> str:
    """What a message of Ray's begins with; the rest is its own traceback."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

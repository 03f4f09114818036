"""Connect to a Ray cluster, or start a local one for the duration of a block."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from typing import Any

from workbench.core.errors import ServiceError
from workbench.core.types import Json
from workbench.core.workspace import Workspace, write_atomic

__all__ = ["connect"]

LOCAL = "local"
"""Address of a local cluster. The default of Ray would use an address in the environment."""

_OBJECT_STORE_BYTES = 200 * 2**20  # for models, lists of frames and results
_CONNECT_TIMEOUT_S = 20.0


@contextlib.contextmanager
def connect(
    workspace: Workspace, address: str = LOCAL, *, cpus: int | None = None
) -> Iterator[Any]:
    """Yield the module ``ray``, connected; a cluster that was started here stops with the block.

    Args:
        address: Address of a cluster (``host:port``, ``auto``, ``ray://host:port``), or `LOCAL`.
        cpus: CPUs of a local cluster; all of this machine's by default.

    Raises:
        ServiceError: Ray is not installed, cannot be started, or does not listen at ``address``.
    """
    if "ray" not in sys.modules:  # it reads the variables only when it is imported
        os.environ.update(_ray_settings(workspace, local=address == LOCAL))
    try:
        import ray
    except ImportError as error:
        raise ServiceError(
            "Ray is not installed", hint='Install the extra: pip install "workbench[scale]"'
        ) from error
    options: Json = {"address": address}
    if address == LOCAL:
        options["num_cpus"] = cpus or os.cpu_count() or 1
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    connected = ray.is_initialized()
    # Ray prints problems of workers to standard output, which belongs to --json.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            _check_listening(address)
            if not connected:
                _start_ray(ray, options)
        except Exception as error:  # Ray raises plain exceptions, too
            raise _connection_error(address, error) from error
        try:
            yield ray
        finally:
            if not connected:
                ray.shutdown()


def first_line(error: BaseException) -> str:
    """The first line of an error of Ray; the rest is a traceback."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _start_ray(ray: Any, options: Json) -> None:
    """Start Ray; a local start is tried twice, as Ray times out on a busy machine."""
    for last in (options["address"] != LOCAL, True):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
            return
        except Exception:
            ray.shutdown()
            if last:
                raise


def _check_listening(address: str) -> None:
    """Fail at once if nothing listens at ``address``: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S):
            pass


def _connection_error(address: str, error: Exception) -> ServiceError:
    if address == LOCAL:
        return ServiceError(
            f"Ray did not start: {first_line(error)}",
            hint="Try again, since Ray times out on a busy machine, or run without Ray",
        )
    return ServiceError(
        f"cannot connect to Ray: {first_line(error)}",
        where=address,
        hint="`ray status --address …` shows whether it runs; it needs the Ray and Python versions "
        "of requirements.lock, and this machine needs its token",
    )


def _ray_settings(workspace: Workspace, *, local: bool) -> dict[str, str]:
    """No telemetry; a local cluster listens on loopback only and requires a token."""
    common = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    if not local:
        return common
    token = workspace.secrets / "ray-token"
    if not token.exists():
        write_atomic(token, secrets.token_hex(32).encode(), mode=0o600)
    return {
        **common,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # A single machine, which Ray binds to 127.0.0.1.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }

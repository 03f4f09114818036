"""Ray, joined where a cluster is up, or started on this machine for as long as it is wanted."""

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
from workbench.core.workspace import Workspace, write_atomic

Json = dict[str, Any]

LOCAL = "local"
"""Instead of an address: one of this machine's own. (An address in the environment would send the
work to a cluster unasked.)"""

_OBJECT_STORE = 200 * 2**20  # bytes; models, lists of frames and results pass through it
_CONNECT_TIMEOUT_S = 20.0


@contextlib.contextmanager
def connect(
    workspace: Workspace, address: str = LOCAL, *, cpus: int | None = None
) -> Iterator[Any]:
    """The module ``ray``, connected; what was started here ends with the block.

    Args:
        address: Of a cluster (``host:port``, ``auto``, ``ray://host:port``), or `LOCAL`.
        cpus: Of a local one; by default, all of this machine's.

    Raises:
        ServiceError: Ray is not installed, cannot be started, or nobody listens at ``address``.
    """
    if "ray" not in sys.modules:  # it reads them when it is imported, and never again
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
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    joined = ray.is_initialized()
    # Ray prints what befell a worker on standard output, which belongs to --json.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            _check_listening(address)  # of a cluster joined already, too: it may be another one
            if not joined:
                _start_ray(ray, options)
        except Exception as error:  # Ray raises bare ones, too
            raise _connection_error(address, error) from error
        try:
            yield ray
        finally:
            if not joined:
                ray.shutdown()


def first_line(error: BaseException) -> str:
    """What a message of Ray's begins with; the rest is its own traceback."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _start_ray(ray: Any, options: Json) -> None:
    """A start is tried twice, for on a busy machine Ray's agents come too late."""
    for last in (options["address"] != LOCAL, True):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
            return
        except Exception:
            ray.shutdown()
            if last:
                raise


def _check_listening(address: str) -> None:
    """Raise at once where nobody listens: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S):
            pass


def _connection_error(address: str, error: Exception) -> ServiceError:
    if address == LOCAL:
        return ServiceError(
            f"Ray could not be started: {first_line(error)}",
            hint="On a busy machine it may come up too late: run it again, or without Ray",
        )
    return ServiceError(
        f"Ray could not be reached: {first_line(error)}",
        where=address,
        hint="`ray status --address …` says whether a cluster is up; its Ray and Python have to "
        "be those of requirements.lock, and its token has to be at hand",
    )


def _ray_settings(workspace: Workspace, *, local: bool) -> dict[str, str]:
    """No telemetry; a local one hears loopback only, and only whoever knows the token."""
    always = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    if not local:
        return always
    token = workspace.secrets / "ray-token"
    if not token.exists():
        write_atomic(token, secrets.token_hex(32).encode(), mode=0o600)
    return {
        **always,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # Named after the systems where it is the default: no cluster, so 127.0.0.1 it is.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }

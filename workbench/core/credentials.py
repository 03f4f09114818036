"""Generated secrets: one file each, readable by their owner only, made once and never printed."""

from __future__ import annotations

import secrets
import stat
from pathlib import Path

from workbench.core.errors import ServiceError
from workbench.core.workspace import Workspace, write_atomic

PUBLIC_KEY_SUFFIX = ".pub.pem"
"""Ending of public keys, which anybody may read."""

_FOLDER_MODE = 0o700
_FILE_MODE = 0o600


def secret_path(workspace: Workspace, name: str) -> Path:
    return workspace.secrets / name


def ensure_secret(workspace: Workspace, name: str, *, random_bytes: int = 32) -> str:
    """The secret called ``name``; it is generated when there is none yet."""
    path = secret_path(workspace, name)
    if not path.exists():
        workspace.secrets.mkdir(parents=True, exist_ok=True)
        workspace.secrets.chmod(_FOLDER_MODE)
        write_atomic(path, secrets.token_urlsafe(random_bytes).encode(), mode=_FILE_MODE)
    return read_secret(path)


def read_secret(path: Path) -> str:
    """The secret in ``path``, without the line end that an editor may have left.

    Raises:
        ServiceError: The file is missing or empty.
    """
    try:
        secret = path.read_text().strip()
    except OSError as error:
        raise ServiceError(
            "A secret cannot be read", where=path, hint="Run `workbench up` to make it"
        ) from error
    if not secret:
        raise ServiceError("A secret is empty", where=path, hint="Delete it; `workbench up` again")
    return secret


def exposed_secrets(workspace: Workspace) -> list[Path]:
    """Secret files, or their folder, that other users of the machine could read."""
    if not workspace.secrets.is_dir():
        return []
    inside = [p for p in workspace.secrets.rglob("*") if not p.is_symlink()]
    secret = [workspace.secrets, *(p for p in inside if not p.name.endswith(PUBLIC_KEY_SUFFIX))]
    return [p for p in secret if stat.S_IMODE(p.stat().st_mode) & 0o077]

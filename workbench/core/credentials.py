"""Generated secrets: one file each, generated once, readable by their owner only, never printed."""

from __future__ import annotations

import secrets
import stat
from pathlib import Path

from workbench.core.errors import ServiceError
from workbench.core.workspace import Workspace, write_atomic

__all__ = ()

PUBLIC_KEY_SUFFIX = ".pub.pem"
"""File name suffix of public keys, which are no secrets."""

_FOLDER_MODE = 0o700
_FILE_MODE = 0o600


def secret_path(workspace: Workspace, name: str) -> Path:
    """The file of the secret ``name``."""
    return workspace.secrets / name


def ensure_secret(workspace: Workspace, name: str, *, random_bytes: int = 32) -> str:
    """The secret ``name``, generated when it does not exist.

    Args:
        random_bytes: Entropy of a generated secret; its text is URL-safe base64.
    """
    path = secret_path(workspace, name)
    if not path.exists():
        workspace.secrets.mkdir(parents=True, exist_ok=True)
        workspace.secrets.chmod(_FOLDER_MODE)
        write_atomic(path, secrets.token_urlsafe(random_bytes).encode(), mode=_FILE_MODE)
    return read_secret(path)


def read_secret(path: Path) -> str:
    """The secret in ``path``, without surrounding whitespace.

    Raises:
        ServiceError: The file is missing or empty.
    """
    try:
        secret = path.read_text().strip()
    except OSError as error:
        raise ServiceError(
            "cannot read a secret", where=path, hint="Run `workbench up` to generate it"
        ) from error
    if not secret:
        raise ServiceError(
            "a secret is empty", where=path, hint="Delete the file, then run `workbench up`"
        )
    return secret


def exposed_secrets(workspace: Workspace) -> list[Path]:
    """Paths of secret files, or of their folder, that other users of the machine can read."""
    if not workspace.secrets.is_dir():
        return []
    inside = [p for p in workspace.secrets.rglob("*") if not p.is_symlink()]
    secret = [workspace.secrets, *(p for p in inside if not p.name.endswith(PUBLIC_KEY_SUFFIX))]
    return [p for p in secret if stat.S_IMODE(p.stat().st_mode) & 0o077]

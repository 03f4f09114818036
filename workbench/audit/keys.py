"""Give roles new keys, and revoke keys; each change has an entry in the audit log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from workbench.audit import log
from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.core.keyring import (
    KeyEntry,
    Role,
    add_key,
    read_keyring,
    revoke_key,
    signing_key,
)
from workbench.core.names import check_person, check_text
from workbench.core.signatures import sign_reference
from workbench.core.workspace import Workspace
from workbench.records import releases
from workbench.records.store import Store

__all__ = ["problems", "revoke", "rotate"]

_MAX_REASON_BYTES = 1000
_WARN_DAYS = 30


def rotate(
    workspace: Workspace, role: Role, *, by: str | None = None, days: int | None = 730
) -> KeyEntry:
    """Give a role a new key. What the one before signed stays valid.

    Args:
        by: Who does it; the account that runs the process by default.
        days: Days until it expires; None for never.

    Raises:
        ParameterError: The days are not positive.
        VerificationError: The list of keys was changed.
    """
    if days is not None and days <= 0:
        raise ParameterError(f"days until a key expires must be positive, not {days}")
    with log.signed_again(workspace):
        entry = add_key(workspace, role, days=days)
    version = read_keyring(workspace).version
    detail = {"role": role, "key": entry.key, "expires": entry.expires, "keyring": version}
    log.append(workspace, "key-rotated", by=by, subjects=(), **detail)
    return entry


def revoke(workspace: Workspace, key: str, *, by: str, reason: str) -> list[KeyEntry]:
    """Revoke a key: nothing that it signed counts from now on, whenever it was signed.

    Where the key was in use, a new one takes over. The checkpoint of the audit log and rollbacks
    are signed again, so no withdrawn release comes back; releases have to be released again.

    Args:
        key: Its fingerprint, or the first digits.

    Returns:
        The new keys.

    Raises:
        ParameterError: No key or several have these digits, or a text is invalid.
        VerificationError: The audit log or a rollback was changed: find out first.
    """
    by = check_person(by, "name of who revokes")
    reason = check_text(reason, "reason", max_bytes=_MAX_REASON_BYTES)
    with log.signed_again(workspace):
        store = Store(workspace)
        counted = [
            ref
            for model in releases.release_models(workspace)
            for ref in releases.signed_rollbacks(store, model)
        ]
        made = revoke_key(workspace, key, by=by, reason=reason)
        signer = signing_key(workspace)
        for ref in counted:
            signature = sign_reference(signer, releases.ROLLBACK_PURPOSE, ref)
            store.write_side(ref, releases.SIGNATURE, signature)
    ring = read_keyring(workspace)
    (revoked,) = {one.key for one in ring.keys if one.key.startswith(key)}
    detail = {"key": revoked, "reason": reason, "keyring": ring.version}
    log.append(workspace, "key-revoked", by=by, subjects=(), **detail)
    return made


def problems(workspace: Workspace) -> list[str]:
    """What is wrong with the list of keys, or will be within 30 days; a sentence each."""
    found = []
    ring = read_keyring(workspace)
    changes = (one.detail.get("keyring", 0) for one in log.read_log(workspace))
    newest = max(changes, default=0)
    if newest > ring.version:
        found.append(
            f"the list of keys is version {ring.version}, the audit log has a change to version "
            f"{newest}"
        )
    soon = (datetime.now(UTC) + timedelta(days=_WARN_DAYS)).isoformat(timespec="seconds")
    for entry in ring.keys:
        if entry == ring.current(entry.role) and entry.expired_at(soon):
            found.append(f"{entry.role} key {digest.shorten(entry.key)}… expires {entry.expires}")
    return found

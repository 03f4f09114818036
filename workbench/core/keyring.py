"""The keys of a workspace: which key signs what, until when, and which ones are revoked.

A key has a role: ``release`` (releases, rollbacks, promoted steps, claims), ``rollout`` (what comes
back from the road), ``labels`` (label sets) and ``log`` (checkpoints of the audit log). A new
workspace has one key, the root, with every role. Once a role gets a key of its own, the list of
keys is in ``keys/keyring.json``, signed by the root key. Private keys never leave ``secrets/``.

A *retired* key signs nothing any more, what it signed stays valid. A *revoked* key counts for
nothing, whenever it signed. An *expired* key signs nothing; what it signed before stays valid.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.core import digest, signatures
from workbench.core.errors import ParameterError, Refusal, VerificationError
from workbench.core.signatures import SigningKey
from workbench.core.workspace import Workspace, write_atomic

__all__ = ["Role"]

Role = Literal["root", "release", "rollout", "labels", "log"]

_ROOT_FILE, _ROOT_PUBLIC_FILE = "signing-key.pem", "signing-key.pub.pem"
_PURPOSE = "keyring"


class KeyEntry(BaseModel):
    """A key in one role. Times are ISO 8601 in UTC.

    Attributes:
        key: Fingerprint: the SHA-256 of the public key's PEM file.
        reason: Why it was revoked, and ``by`` whom.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Role
    key: str
    created: str | None = None
    expires: str | None = None
    retired: str | None = None
    revoked: str | None = None
    by: str = ""
    reason: str = ""

    @property
    def state(self) -> str:
        """``active``, ``expired``, ``retired`` or ``revoked``."""
        if self.revoked:
            return "revoked"
        if self.retired:
            return "retired"
        return "expired" if self.expired_at(_now()) else "active"

    def expired_at(self, moment: str | None) -> bool:
        """Whether the key had expired at a time; False where the time is not known."""
        return bool(self.expires and moment and moment > self.expires)


class Keyring(BaseModel):
    """The keys of a workspace, oldest first. ``version`` counts the changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1] = 1
    version: int = 0
    keys: tuple[KeyEntry, ...] = ()

    def current(self, role: Role) -> KeyEntry:
        """The key that signs in a role, expired or not."""
        return next(
            one
            for one in reversed(self.keys)
            if one.role == role and not (one.retired or one.revoked)
        )

    def of(self, fingerprint: str) -> list[KeyEntry]:
        """The roles of a key."""
        return [one for one in self.keys if one.key == fingerprint]


@dataclass(frozen=True)
class _Paths:
    workspace: Workspace

    @property
    def ring(self) -> Path:
        return self.workspace.root / "keys" / "keyring.json"

    @property
    def root(self) -> Path:
        return self.workspace.secrets / _ROOT_FILE

    def private(self, fingerprint: str) -> Path:
        return self.workspace.secrets / "keys" / f"{fingerprint}.pem"

    def public(self, fingerprint: str) -> Path:
        return self.ring.with_name(f"{fingerprint}.pub.pem")


def read_keyring(workspace: Workspace) -> Keyring:
    """The keys of a workspace.

    Raises:
        VerificationError: There is no key, or the list was changed.
    """
    paths = _Paths(workspace)
    if not paths.root.exists():
        raise VerificationError(
            "workspace has no signing key",
            where=workspace.secrets / _ROOT_PUBLIC_FILE,
            hint="Give the signer's public key with --key",
            reason=Refusal.WRONG_KEY,
        )
    return _read(paths, _root_key(paths))


def _read(paths: _Paths, root: SigningKey) -> Keyring:
    if not paths.ring.exists():
        roles: tuple[Role, ...] = get_args(Role)
        return Keyring(keys=tuple(KeyEntry(role=role, key=root.fingerprint) for role in roles))
    try:
        body = json.loads(paths.ring.read_bytes())
        signature = body.pop("signature")
        ring = Keyring.model_validate(body)
        signatures.check_reference(signature, _PURPOSE, digest.of_json(body), [root.public])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, VerificationError) as error:
        raise VerificationError(
            "list of keys was changed or is damaged"
            if isinstance(error, ValidationError | ValueError | KeyError | TypeError)
            else f"list of keys is not trusted: {error}",
            where=paths.ring,
            hint="Restore it from a backup",
            reason=Refusal.KEYRING_CHANGED,
        ) from error
    return ring


def signing_key(workspace: Workspace, role: Role = "release") -> SigningKey:
    """The key that signs in a role; the root key is generated at first use.

    Raises:
        VerificationError: The key is invalid or has expired, or other users can read it.
    """
    paths = _Paths(workspace)
    root = _root_key(paths)
    entry = _read(paths, root).current(role)
    if entry.state == "expired":
        raise VerificationError(
            f"{role} key {digest.shorten(entry.key)}… expired on {entry.expires}",
            where=paths.ring,
            hint=f"Run `workbench keys rotate {role}`",
            reason=Refusal.KEY_EXPIRED,
        )
    return root if entry.key == root.fingerprint else _key_of(paths, entry.key)


def public_key(
    workspace: Workspace,
    role: Role = "release",
    *,
    signer: str | None = None,
    at: str | None = None,
    ring: Keyring | None = None,
) -> Path:
    """PEM file of a public key of a workspace; unlike `signing_key` this never generates one.

    Args:
        role: What was signed.
        signer: Fingerprint of the key that signed, by default the one that signs now. For a key
            that the workspace does not know, the one that signs now is given: it did not sign.
        at: When it was signed, where that is known.
        ring: Of `read_keyring`, to read it once for many.

    Raises:
        VerificationError: The workspace has no key, or the signer's key was revoked, had expired or
            is for something else.
    """
    ring = ring or read_keyring(workspace)
    entries = ring.of(signer) if signer else []
    entry = next((one for one in entries if one.role == role), None)
    if entries and entry is None:
        raise VerificationError(
            f"key {digest.shorten(entries[0].key)}… is for {entries[0].role}, not for {role}",
            where=_Paths(workspace).ring,
            reason=Refusal.WRONG_KEY,
        )
    if entry is not None and entry.revoked:
        before = f"; this was signed before, on {at}" if at and at < entry.revoked else ""
        raise VerificationError(
            f"key {digest.shorten(entry.key)}… was revoked on {entry.revoked} by {entry.by}: "
            f"{entry.reason}{before}",
            where=_Paths(workspace).ring,
            hint="Release it again with the new key",
            reason=Refusal.KEY_REVOKED,
        )
    if entry is not None and entry.expired_at(at):
        raise VerificationError(
            f"key {digest.shorten(entry.key)}… had expired on {entry.expires} when this was "
            f"signed, on {at}",
            where=_Paths(workspace).ring,
            reason=Refusal.KEY_EXPIRED,
        )
    return _public_path(workspace, (entry or ring.current(role)).key)


def usable_keys(workspace: Workspace, role: Role) -> list[Path]:
    """PEM files of the keys of a role that were not revoked, retired ones included."""
    usable = dict.fromkeys(
        one.key for one in read_keyring(workspace).keys if one.role == role and not one.revoked
    )
    return [_public_path(workspace, key) for key in usable]


def export_keys(workspace: Workspace) -> dict[str, bytes]:
    """The signed list of keys and the public keys, by file name, for whoever verifies elsewhere."""
    paths = _Paths(workspace)
    root = _root_key(paths)
    ring = _read(paths, root)
    files = {
        f"{key}.pub.pem": _public_path(workspace, key).read_bytes()
        for key in dict.fromkeys(one.key for one in ring.keys)
    }
    return {"keyring.json": _signed(ring, root), **files}


def add_key(workspace: Workspace, role: Role, *, days: int | None) -> KeyEntry:
    """Give a role a new key; the one before is retired. Logged by `workbench.audit.keys`.

    Args:
        days: Days until it expires; None for never.
    """
    paths = _Paths(workspace)
    root = _root_key(paths)
    ring = _read(paths, root)
    entry = _new_entry(paths, role, days)
    keys = [_retired(one) if one.role == role else one for one in ring.keys]
    _write(paths, root, ring, [*keys, entry])
    return entry


def revoke_key(workspace: Workspace, key: str, *, by: str, reason: str) -> list[KeyEntry]:
    """Revoke a key in all its roles; where it was in use, a new key takes over.

    Args:
        key: Its fingerprint, or the first digits.

    Returns:
        The new keys.

    Raises:
        ParameterError: No key or several have these digits, or it was revoked before.
    """
    paths = _Paths(workspace)
    root = _root_key(paths)
    ring = _read(paths, root)
    matches = sorted({one.key for one in ring.keys if one.key.startswith(key)})
    if len(matches) != 1:
        raise ParameterError(
            f"{len(matches) or 'no'} keys match {key!r}", hint="`workbench keys list` lists them"
        )
    (fingerprint,) = matches
    if all(one.revoked for one in ring.of(fingerprint)):
        raise ParameterError("key was revoked before", where=fingerprint)
    revoked = {"revoked": _now(), "by": by, "reason": reason}
    keys = [one.model_copy(update=revoked) if one.key == fingerprint else one for one in ring.keys]
    lacking = [
        role
        for role in get_args(Role)
        if not any(one.role == role and not (one.retired or one.revoked) for one in keys)
    ]
    # One key for all that the revoked one did, as before.
    made = [_new_entry(paths, role, None) for role in lacking[:1]]
    made += [made[0].model_copy(update={"role": role}) for role in lacking[1:]]
    _write(paths, root, ring, [*keys, *made])
    return made


def _write(paths: _Paths, root: SigningKey, ring: Keyring, keys: list[KeyEntry]) -> None:
    """Sign and write the list; a new root key takes the root's place last."""
    for entry in keys:
        source = root.public if entry.key == root.fingerprint else None
        if source is not None and not paths.public(entry.key).exists():
            write_atomic(paths.public(entry.key), source.read_bytes())
    changed = Keyring(version=ring.version + 1, keys=tuple(keys))
    new_root = changed.current("root").key
    signer = root if new_root == root.fingerprint else _key_of(paths, new_root)
    write_atomic(paths.ring, _signed(changed, signer))
    if signer is not root:
        kept = paths.private(root.fingerprint)
        if not kept.exists():
            write_atomic(kept, root.private.read_bytes(), mode=0o600)
        write_atomic(paths.root, signer.private.read_bytes(), mode=0o600)


def _signed(ring: Keyring, root: SigningKey) -> bytes:
    body = ring.model_dump(mode="json")
    signature = signatures.sign_reference(root, _PURPOSE, digest.of_json(body))
    return json.dumps({**body, "signature": signature}, indent=1).encode()


def _retired(entry: KeyEntry) -> KeyEntry:
    if entry.retired or entry.revoked:
        return entry
    return entry.model_copy(update={"retired": _now()})


def _new_entry(paths: _Paths, role: Role, days: int | None) -> KeyEntry:
    folder = paths.private("").parent
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as scratch:
        made = Path(scratch) / "key.pem"
        _generate(made)
        pem = signatures.public_pem(made)
        fingerprint = digest.of_bytes(pem)
        made.rename(paths.private(fingerprint))
    write_atomic(paths.public(fingerprint), pem)
    end = datetime.now(UTC) + timedelta(days=days) if days is not None else None
    expires = end.isoformat(timespec="seconds") if end else None
    return KeyEntry(role=role, key=fingerprint, created=_now(), expires=expires)


def _root_key(paths: _Paths) -> SigningKey:
    secrets, private = paths.workspace.secrets, paths.root
    if not private.exists():
        secrets.mkdir(parents=True, exist_ok=True)
        secrets.chmod(0o700)
        _generate(private)
    _check_mode(private)
    public = secrets / _ROOT_PUBLIC_FILE
    pem = signatures.public_pem(private)
    if not public.exists() or public.read_bytes() != pem:
        write_atomic(public, pem)
    return SigningKey(private, public, digest.of_bytes(pem))


def _key_of(paths: _Paths, fingerprint: str) -> SigningKey:
    private = paths.private(fingerprint)
    if not private.exists():
        raise VerificationError(
            "private key is not on this machine",
            where=private,
            hint="Restore it from a backup, or run `workbench keys rotate`",
        )
    _check_mode(private)
    return SigningKey(private, _public_path(paths.workspace, fingerprint), fingerprint)


def _public_path(workspace: Workspace, fingerprint: str) -> Path:
    root = workspace.secrets / _ROOT_PUBLIC_FILE
    path = _Paths(workspace).public(fingerprint)
    for found in (path, root):
        if found.exists() and digest.of_file(found) == fingerprint:
            return found
    raise VerificationError(
        "public key is missing or was changed", where=path, reason=Refusal.KEYRING_CHANGED
    )


def _check_mode(private: Path) -> None:
    if stat.S_IMODE(private.stat().st_mode) & 0o077:
        raise VerificationError(
            "signing key can be read by other users",
            where=private,
            hint="Run `chmod 600` on it; if it was copied, revoke it and sign again",
        )


def _generate(path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".key-")  # created with mode 0600
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(pem)
            os.fsync(stream.fileno())
        # Unlike a rename, a link never replaces: of two concurrent processes both use one key.
        os.link(name, path)
    except FileExistsError:
        pass
    finally:
        Path(name).unlink()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

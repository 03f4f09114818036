"""The two repositories of Uptane, and signed messages; all metadata is python-tuf's.

The image repository says which files exist, for which hardware, and what they require. Its root and
targets keys are offline. The director says which vehicle installs which of them; it signs for each
vehicle and each poll, so its keys are online. A vehicle installs only what both say.

Root keys of both, and the image repository's targets keys, lie in a folder of their own that no
server reads: move it to a machine without a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import CryptoSigner, Key, Signature, SSlibKey
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    T,
    TargetFile,
    Targets,
    Timestamp,
)

from workbench.core import digest, errors
from workbench.core.parsing import parse_json
from workbench.core.text import short_repr
from workbench.core.types import Json
from workbench.core.workspace import write_atomic
from workbench.fleet.components import Component, Target, VehicleProfile, target_path
from workbench.fleet.reasons import Reason, UpdateRefused

__all__ = ()

ROOT_EXPIRES = timedelta(days=365)
TARGETS_EXPIRES = timedelta(days=90)
SNAPSHOT_EXPIRES = timedelta(days=7)
TIMESTAMP_EXPIRES = timedelta(days=2)
DIRECTOR_EXPIRES = timedelta(days=1)


@dataclass(frozen=True)
class RoleKeys:
    """Number of keys of a role, and how many of them have to sign."""

    keys: int
    threshold: int


IMAGE_ROLES = {
    "root": RoleKeys(3, 2),
    "targets": RoleKeys(2, 2),
    "snapshot": RoleKeys(1, 1),
    "timestamp": RoleKeys(1, 1),
}
DIRECTOR_ROLES = {
    "root": RoleKeys(3, 2),
    "targets": RoleKeys(1, 1),
    "snapshot": RoleKeys(1, 1),
    "timestamp": RoleKeys(1, 1),
}


def new_signer() -> CryptoSigner:
    """A new Ed25519 key."""
    return CryptoSigner.generate_ed25519()


def save_signer(signer: CryptoSigner, path: Path) -> None:
    """Write a private key, readable by its owner only."""
    write_atomic(path, signer.private_bytes, mode=0o600)


def load_signer(path: Path) -> CryptoSigner:
    """Read a private key.

    Raises:
        VerificationError: The file is missing or is no Ed25519 key.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("not an Ed25519 key")
        return CryptoSigner(key)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise errors.VerificationError(
            "fleet key cannot be read",
            where=path,
            hint="Offline keys have to be mounted to sign a release or a new root",
        ) from error


@short_repr
@dataclass(frozen=True)
class RepositoryKeys:
    """Keys of one repository, as PEM files named ``ROLE-N.pem``.

    Attributes:
        roles: Number of keys and threshold of each role.
        offline: Folder of the keys that no server may read, by role in ``offline_roles``.
        online: Folder of the others.
    """

    roles: Mapping[str, RoleKeys]
    offline_roles: frozenset[str]
    offline: Path
    online: Path

    def create(self) -> None:
        """Generate all keys.

        Raises:
            VerificationError: There is a key already.
        """
        for role in self.roles:
            for path in self._paths(role):
                if path.exists():
                    raise errors.VerificationError("fleet key exists already", where=path)
                save_signer(new_signer(), path)

    def signers(self, role: str) -> list[CryptoSigner]:
        """Private keys of a role."""
        return [load_signer(path) for path in self._paths(role)]

    def _paths(self, role: str) -> list[Path]:
        folder = self.offline if role in self.offline_roles else self.online
        return [folder / f"{role}-{number + 1}.pem" for number in range(self.roles[role].keys)]


def image_keys(offline: Path, online: Path) -> RepositoryKeys:
    """Keys of an image repository."""
    return RepositoryKeys(IMAGE_ROLES, frozenset({"root", "targets"}), offline, online)


def director_keys(offline: Path, online: Path) -> RepositoryKeys:
    """Keys of a director."""
    return RepositoryKeys(DIRECTOR_ROLES, frozenset({"root"}), offline, online)


def create_root(keys: RepositoryKeys, now: datetime, *, consistent_snapshot: bool) -> bytes:
    """Version 1 of the root of a repository, signed with its root keys."""
    root = Root(1, expires=now + ROOT_EXPIRES, consistent_snapshot=consistent_snapshot)
    for role, numbers in keys.roles.items():
        for signer in keys.signers(role):
            root.add_key(signer.public_key, role)
        root.roles[role].threshold = numbers.threshold
    return _signed(root, keys.signers("root"))


def rotate_root(
    previous: bytes,
    changes: Mapping[str, Sequence[CryptoSigner]],
    root_signers: Sequence[CryptoSigner],
    now: datetime,
) -> bytes:
    """The next version of a root.

    Args:
        previous: The newest root.
        changes: All new keys of a role, by role.
        root_signers: Old and new root keys; both thresholds have to be met.
    """
    root = Metadata[Root].from_bytes(previous).signed
    for role, signers in changes.items():
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        for signer in signers:
            root.add_key(signer.public_key, role)
    root.version += 1
    root.expires = now + ROOT_EXPIRES
    return _signed(root, root_signers)


class ImageRepository:
    """The image repository: a folder of metadata and target files that any web server can serve.

    Args:
        folder: With ``metadata`` and ``targets``.
        keys: `publish` needs the offline ones, `refresh` only the online ones.
    """

    def __init__(self, folder: Path, keys: RepositoryKeys) -> None:
        self.metadata, self.targets = folder / "metadata", folder / "targets"
        self._keys = keys

    def create(self, now: datetime) -> None:
        """Sign an empty repository."""
        root = create_root(self._keys, now, consistent_snapshot=True)
        write_atomic(self.metadata / "1.root.json", root)
        self._write(Targets(version=1, expires=now + TARGETS_EXPIRES), now)

    def current(self) -> dict[str, Target]:
        """All targets of the newest metadata, by path; not verified, the folder is ours."""
        return {
            path: Target(
                path=path,
                sha256=entry.hashes["sha256"],
                length=entry.length,
                component=Component.model_validate(entry.custom),
            )
            for path, entry in self._targets().targets.items()
        }

    def publish(self, component: Component, content: bytes, now: datetime) -> Target:
        """Add a file and sign the targets; needs the offline keys.

        Raises:
            VerificationError: The counter is not higher than all others of this ECU, or an offline
                key is missing.
        """
        path = target_path(component)
        targets = self._targets()
        known = [Component.model_validate(entry.custom) for entry in targets.targets.values()]
        highest = max((one.counter for one in known if one.ecu == component.ecu), default=-1)
        # The chips of one release share its counter.
        if component.counter < highest or path in targets.targets:
            raise errors.VerificationError(
                f"release counter {component.counter} of {component.ecu} was used; "
                f"the highest is {highest}",
                where=path,
            )
        entry = TargetFile.from_data(path, content, ["sha256"])
        entry.unrecognized_fields["custom"] = component.model_dump(mode="json")
        sha256 = entry.hashes["sha256"]
        file = self.targets / path
        write_atomic(file.with_name(f"{sha256}.{file.name}"), content)
        targets.targets[path] = entry
        targets.version += 1
        targets.expires = now + TARGETS_EXPIRES
        self._write(targets, now)
        return Target(path=path, sha256=sha256, length=entry.length, component=component)

    def content(self, target: Target) -> bytes:
        """A target file."""
        file = self.targets / target.path
        return file.with_name(f"{target.sha256}.{file.name}").read_bytes()

    def refresh(self, now: datetime) -> None:
        """Sign snapshot and timestamp again before they expire; needs the online keys only."""
        if self._timestamp().expires - now < TIMESTAMP_EXPIRES / 2:
            self._write_snapshot(self._snapshot().meta["targets.json"], now)

    def _targets(self) -> Targets:
        version = self._snapshot().meta["targets.json"].version
        return Metadata[Targets].from_file(str(self.metadata / f"{version}.targets.json")).signed

    def _snapshot(self) -> Snapshot:
        version = self._timestamp().snapshot_meta.version
        return Metadata[Snapshot].from_file(str(self.metadata / f"{version}.snapshot.json")).signed

    def _timestamp(self) -> Timestamp:
        return Metadata[Timestamp].from_file(str(self.metadata / "timestamp.json")).signed

    def _write(self, targets: Targets, now: datetime) -> None:
        content = _signed(targets, self._keys.signers("targets"))
        write_atomic(self.metadata / f"{targets.version}.targets.json", content)
        self._write_snapshot(MetaFile.from_data(targets.version, content, ["sha256"]), now)

    def _write_snapshot(self, targets: MetaFile, now: datetime) -> None:
        """Snapshot and timestamp of the next version; the timestamp is written last."""
        first = not (self.metadata / "timestamp.json").exists()
        version = 1 if first else self._timestamp().version + 1
        snapshot = Snapshot(version, expires=now + SNAPSHOT_EXPIRES, meta={"targets.json": targets})
        content = _signed(snapshot, self._keys.signers("snapshot"))
        write_atomic(self.metadata / f"{version}.snapshot.json", content)
        meta = MetaFile.from_data(version, content, ["sha256"])
        timestamp = Timestamp(version, expires=now + TIMESTAMP_EXPIRES, snapshot_meta=meta)
        content = _signed(timestamp, self._keys.signers("timestamp"))
        write_atomic(self.metadata / "timestamp.json", content)


@dataclass(frozen=True)
class DirectorSigners:
    """Online private keys of the director, read once."""

    targets: CryptoSigner
    snapshot: CryptoSigner
    timestamp: CryptoSigner

    @classmethod
    def load(cls, keys: RepositoryKeys) -> DirectorSigners:
        """Read the keys.

        Raises:
            VerificationError: One is missing.
        """
        return cls(*(keys.signers(role)[0] for role in ("targets", "snapshot", "timestamp")))


def director_metadata(
    vehicle: VehicleProfile,
    targets: Sequence[Target],
    version: int,
    signers: DirectorSigners,
    now: datetime,
) -> dict[str, bytes]:
    """Metadata of the director for one vehicle, by file name.

    Args:
        targets: What the vehicle shall install; at most one for each ECU.
        version: Higher than that of everything signed for this vehicle before.
    """
    entries = {}
    for target in targets:
        ecu = target.component.ecu
        entry = TargetFile(target.length, {"sha256": target.sha256}, target.path)
        entry.unrecognized_fields["custom"] = {
            "ecu_identifier": vehicle.ecu_id(ecu),
            "hardware_id": vehicle.ecus[ecu].hardware,
            "counter": target.component.counter,
        }
        entries[target.path] = entry
    expires = now + DIRECTOR_EXPIRES
    files = {
        "targets.json": _signed(
            Targets(version, expires=expires, targets=entries), [signers.targets]
        )
    }
    meta = {"targets.json": MetaFile.from_data(version, files["targets.json"], ["sha256"])}
    files["snapshot.json"] = _signed(
        Snapshot(version, expires=expires, meta=meta), [signers.snapshot]
    )
    snapshot = MetaFile.from_data(version, files["snapshot.json"], ["sha256"])
    files["timestamp.json"] = _signed(
        Timestamp(version, expires=expires, snapshot_meta=snapshot), [signers.timestamp]
    )
    return files


def seal_message(body: Json, signer: CryptoSigner) -> bytes:
    """A signed message: time, manifest or report.

    Raises:
        DataError: The body has NaN or another number that JSON cannot hold.
    """
    signature = signer.sign(digest.canonical_json(body))
    return digest.canonical_json({"signed": body, "signature": signature.to_dict()})


def open_message(content: bytes, key: Key) -> Json:
    """The body of a signed message.

    Raises:
        UpdateRefused: It is no signed message, or not signed with this key.
    """
    try:
        message = parse_json(content)
        body: Json = message["signed"]
        signature = Signature.from_dict(dict(message["signature"]))
        signed = digest.canonical_json(body)
    except (ValueError, KeyError, TypeError, AttributeError, errors.DataError) as error:
        raise UpdateRefused(Reason.MESSAGE_INVALID, f"not a signed message: {error}") from error
    try:
        key.verify_signature(signature, signed)
    except (UnverifiedSignatureError, VerificationError) as error:
        raise UpdateRefused(Reason.BAD_SIGNATURE, "message is signed with another key") from error
    if not isinstance(body, dict):
        raise UpdateRefused(Reason.MESSAGE_INVALID, "message is not a JSON object")
    return body


def public_key(value: Json) -> Key:
    """A public key from its JSON form, `SSlibKey.to_dict` with its ``keyid``."""
    fields = dict(value)
    return SSlibKey.from_dict(str(fields.pop("keyid")), fields)


def key_to_json(key: Key) -> Json:
    """A public key as JSON."""
    return {"keyid": key.keyid, **key.to_dict()}


def _signed(payload: T, signers: Sequence[CryptoSigner]) -> bytes:
    metadata = Metadata(payload)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()

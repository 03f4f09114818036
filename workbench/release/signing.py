"""Signed folders: every byte of a bundle, and what it was released as.

The file ``signature`` is an envelope (see `workbench.core.signatures`) around a statement that
OpenSSF model-signing reads too: it lists the digest of every other file. Since version 2 it also
names the model, the verdict and the records that were released, so that a bundle cannot be passed
off as another model's release. Signatures of version 1 are still verified; they say less.
`verify_folder` fails closed. Beyond model-signing's own check it refuses git files, empty folders,
a signature file with unsigned content, and statements that leave files out.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from workbench.core import digest
from workbench.core.errors import Refusal, VerificationError
from workbench.core.keyring import public_key, signing_key
from workbench.core.signatures import (
    Envelope,
    SigningKey,
    envelope_signer,
    make_envelope,
    open_envelope,
)
from workbench.core.types import Json
from workbench.core.workspace import Workspace, write_atomic
from workbench.detection.bundles import SIGNATURE_FILE
from workbench.records.releases import SignedRelease, signed_release_of

__all__ = ["public_key", "signing_key", "verify_folder"]

_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_SERIALISATION = {
    "method": "files",
    "hash_type": "sha256",
    "allow_symlinks": False,
    "ignore_paths": [SIGNATURE_FILE],
}
_HINT = "Do not load it; download it again from where it was released"


@dataclass(frozen=True)
class VerifiedFolder:
    """A verified folder.

    Attributes:
        files: Digest of each file, without the signature.
        key: Fingerprint of the public key.
        signature: Digest of the signature file.
        release: What it was released as; None for signatures of version 1.
        contents: The verified bytes of each file. The folder may change after it was verified;
            whoever uses a file takes it from here.
    """

    folder: Path
    files: dict[str, str]
    key: str
    signature: str
    release: SignedRelease | None = None
    contents: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def version(self) -> int:
        """Version of the signature."""
        return 1 if self.release is None else self.release.signature_version


def sign_folder(
    folder: Path, key: SigningKey, release: SignedRelease | None = None
) -> VerifiedFolder:
    """Write ``folder/signature`` over all other files, then verify it.

    Args:
        release: What the folder is released as.

    Raises:
        VerificationError: The folder is empty or has something that cannot be signed.
    """
    contents = read_folder(folder)
    contents.pop(SIGNATURE_FILE, None)
    digests = _digests(contents)
    resources = [
        {"name": name, "algorithm": "sha256", "digest": digests[name]} for name in contents
    ]
    predicate: Json = {"serialization": _SERIALISATION, "resources": resources}
    if release is not None:
        predicate["workbench"] = release.model_dump(mode="json")
    statement = {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": folder.name, "digest": {"sha256": _root_digest(resources)}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": predicate,
    }
    write_atomic(folder / SIGNATURE_FILE, make_envelope(key, statement))
    return _verify(folder, key.public, {name: (contents[name], digests[name]) for name in contents})


def verify_folder(folder: Path, signer: Path | Workspace) -> VerifiedFolder:
    """Read a signed folder once, and verify every byte that was read.

    Args:
        folder: With its ``signature``.
        signer: PEM file of the expected public key, or the workspace that should have signed: any
            of its release keys counts that was neither revoked nor had expired.

    Raises:
        VerificationError: The signature is invalid, or a file is changed, missing or extra; the
            message names the files.
    """
    return _verify(folder, signer, {})


def _verify(
    folder: Path, signer: Path | Workspace, known: Mapping[str, tuple[bytes, str]]
) -> VerifiedFolder:
    """Verify a folder; ``known`` bytes with their digests need not be hashed again."""
    folder = folder.resolve()
    contents = read_folder(folder)
    where = folder / SIGNATURE_FILE
    signature = contents.pop(SIGNATURE_FILE, None)
    if signature is None:
        raise VerificationError(
            "bundle is not signed",
            where=where,
            hint="Only released bundles are signed",
            reason=Refusal.UNSIGNED,
        )
    if isinstance(signer, Workspace):
        public = public_key(signer, signer=envelope_signer(signature))
    else:
        public = signer
    envelope = open_envelope(signature, public, where=where, hint=_HINT)
    signed, release = _read_statement(envelope, where)
    if isinstance(signer, Workspace) and release is not None:
        public_key(signer, signer=envelope.key, at=release.signed_at)
    same = {
        name: known[name][1]
        for name in contents.keys() & known.keys()
        if contents[name] == known[name][0]
    }
    hashed = _digests({name: contents[name] for name in contents if name not in same})
    files = {name: same.get(name) or hashed[name] for name in contents}
    differences = _differences(signed, files)
    if differences:
        reason = Refusal(f"file-{differences[0].partition(':')[0]}")
        raise VerificationError("; ".join(differences), where=folder, hint=_HINT, reason=reason)
    return VerifiedFolder(folder, files, envelope.key, envelope.digest, release, contents)


def _digests(contents: Mapping[str, bytes]) -> dict[str, str]:
    """Digest of each file, several at a time: hashing lets other threads run."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return dict(zip(contents, pool.map(digest.of_bytes, contents.values()), strict=True))


def read_folder(folder: Path) -> dict[str, bytes]:
    """The bytes of every file of a folder, by its path in it; each file is opened once.

    Raises:
        VerificationError: It has a link, a special file, an empty folder or no file, or cannot be
            read.
    """
    if not folder.is_dir():
        raise VerificationError("bundle folder does not exist", where=folder)
    contents: dict[str, bytes] = {}
    try:
        for parent, folders, names in os.walk(folder, onerror=_raise_error):
            here = Path(parent)
            if not folders and not names and here != folder:
                raise VerificationError(
                    "bundle has an empty folder",
                    where=here,
                    hint=_HINT,
                    reason=Refusal.FILE_EXTRA,
                )
            for name in folders:
                if (here / name).is_symlink():
                    raise _not_regular(here / name)
            for name in names:
                path = here / name
                contents[path.relative_to(folder).as_posix()] = _read_regular_file(path)
    except OSError as error:
        raise VerificationError(
            f"bundle cannot be read: {error.strerror}", where=error.filename or folder
        ) from error
    if not contents.keys() - {SIGNATURE_FILE}:
        raise VerificationError("bundle is empty", where=folder, hint=_HINT)
    return dict(sorted(contents.items()))


def _read_regular_file(path: Path) -> bytes:
    """The bytes of a file; never waits for a pipe, and never follows a link."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise _not_regular(path)
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise _not_regular(path)
        return stream.read()


def _not_regular(path: Path) -> VerificationError:
    return VerificationError(
        "not a regular file or folder", where=path, hint=_HINT, reason=Refusal.UNSAFE_FILE
    )


def _raise_error(error: OSError) -> None:
    raise error


def _read_statement(envelope: Envelope, where: Path) -> tuple[dict[str, str], SignedRelease | None]:
    """Files with their digests, and the release, as the statement lists them."""
    try:
        statement = envelope.statement
        predicate = statement["predicate"]
        if (statement["_type"], statement["predicateType"]) != (_STATEMENT_TYPE, _PREDICATE_TYPE):
            raise ValueError("unknown type")
        if predicate["serialization"] != _SERIALISATION:
            raise ValueError("files are left out or hashed differently")
        resources = predicate["resources"]
        if statement["subject"][0]["digest"] != {"sha256": _root_digest(resources)}:
            raise ValueError("it is about other files")
        signed = {entry["name"]: entry["digest"] for entry in resources}
        release = signed_release_of(envelope, where=where)
    except (ValueError, KeyError, TypeError, IndexError, ValidationError) as error:
        raise VerificationError(
            f"statement of the signature is invalid ({error})",
            where=where,
            hint=_HINT,
            reason=Refusal.SIGNATURE_INVALID,
        ) from error
    return signed, release


def _root_digest(resources: list[Json]) -> str:
    """Digest of the files' digests, in their order."""
    return digest.of_bytes(b"".join(bytes.fromhex(entry["digest"]) for entry in resources))


def _differences(signed: dict[str, str], present: dict[str, str]) -> list[str]:
    changed = [name for name in signed.keys() & present.keys() if signed[name] != present[name]]
    lists = {
        "changed": changed,
        "missing": signed.keys() - present.keys(),
        "extra": present.keys() - signed.keys(),
    }
    return [f"{word}: {', '.join(sorted(names))}" for word, names in lists.items() if names]

"""Signing a folder and checking it, with OpenSSF model-signing (in-toto statement, DSSE envelope).

`verify` fails closed. On top of model-signing's own check it refuses what that lets pass: files
of git, empty folders, a signature file with anything in it that the signature does not cover,
and statements that ask to leave files out.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench import digest, workspace
from workbench.errors import VerificationError
from workbench.release.keys import SigningKey, fingerprint

SIGNATURE = "signature"

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_SERIALISATION = {
    "method": "files",
    "hash_type": "sha256",
    "allow_symlinks": False,
    "ignore_paths": [SIGNATURE],
}
_MOST_BYTES = 4 * 2**20
_NEXT = "Do not load it; fetch it again from where it was released"


@dataclass(frozen=True)
class Verified:
    """What was found to hold: digest of each file, without the signature's own beside it."""

    folder: Path
    files: dict[str, str]
    key: str
    signature: str


def sign(folder: Path, key: SigningKey) -> Verified:
    """Write ``folder/signature`` over all other files there, then check it as a receiver would.

    Raises:
        VerificationError: The folder holds no files, or something that cannot be signed.
    """
    from model_signing import signing

    _files_in(folder)
    config = signing.Config()  # type: ignore[no-untyped-call]
    config = config.use_elliptic_key_signer(private_key=key.private)
    with tempfile.TemporaryDirectory() as elsewhere:
        made = Path(elsewhere) / SIGNATURE
        config.set_hashing_config(_hashing()).sign(folder, made)
        # Kept in one spelling, so that `verify` can refuse every other.
        content = digest.canonical_json(json.loads(made.read_bytes()))
    workspace.write_atomic(folder / SIGNATURE, content)
    return verify(folder, key.public)


def verify(folder: Path, public: Path) -> Verified:
    """Check every byte of a signed folder.

    Args:
        folder: The bundle, with its ``signature``.
        public: PEM file of the public key that it must have been signed with.

    Raises:
        VerificationError: Anything at all does not hold; each changed, missing or extra file
            is named.
    """
    from model_signing import verifying

    expected_key = fingerprint(public)
    folder = folder.resolve()
    files = _files_in(folder)
    signature = _read(folder / SIGNATURE)
    signed = _signed_files(signature, folder / SIGNATURE)
    if signature["key"] != expected_key:
        raise VerificationError(
            f"signed with the key {digest.short(signature['key'])}…, "
            f"not with {digest.short(expected_key)}…",
            where=folder,
            hint="Check with the public key of whoever released it (--key)",
        )
    check = verifying.Config()  # type: ignore[no-untyped-call]
    check = check.use_elliptic_key_verifier(public_key=public).set_hashing_config(_hashing())
    differences = _differences(signed, files)
    try:
        check.verify(folder, folder / SIGNATURE)
    except Exception as error:  # whatever goes wrong inside, the answer is no
        if not str(error).startswith("Signature mismatch:"):
            raise VerificationError(
                "the signature was not made by this key over this statement",
                where=folder / SIGNATURE,
                hint=_NEXT,
            ) from error
        differences = differences or [str(error)]
    if differences:
        raise VerificationError("; ".join(differences), where=folder, hint=_NEXT)
    return Verified(folder, files, expected_key, digest.of_file(folder / SIGNATURE))


def _hashing() -> Any:
    from model_signing import hashing

    config = hashing.Config()  # type: ignore[no-untyped-call]
    return config.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _files_in(folder: Path) -> dict[str, str]:
    """Digest of every file but the signature; refuses whatever is no plain file or folder."""
    if not folder.is_dir():
        raise VerificationError("no such bundle folder", where=folder)
    found: dict[str, str] = {}
    try:
        for parent, folders, names in os.walk(folder, onerror=_raise):
            here = Path(parent)
            if not folders and not names and here != folder:
                raise VerificationError("empty folder in the bundle", where=here, hint=_NEXT)
            for name in (*folders, *names):
                path = here / name
                if path.is_symlink() or not (path.is_dir() or path.is_file()):
                    raise VerificationError(
                        "neither a plain file nor a folder", where=path, hint=_NEXT
                    )
                if path.is_file() and path != folder / SIGNATURE:
                    found[path.relative_to(folder).as_posix()] = digest.of_file(path)
    except OSError as error:
        raise VerificationError(
            f"bundle cannot be read: {error.strerror}", where=error.filename or folder
        ) from error
    if not found:
        raise VerificationError("the bundle is empty", where=folder, hint=_NEXT)
    return dict(sorted(found.items()))


def _raise(error: OSError) -> None:
    raise error


def _read(path: Path) -> dict[str, str]:
    """Key hint and payload of a signature file that says nothing but what it must."""
    if not path.is_file():
        raise VerificationError(
            "the bundle is not signed", where=path, hint="Only a released bundle has a signature"
        )
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("too large")
        content = path.read_bytes()
        body = json.loads(content)
        envelope = body["dsseEnvelope"]
        hint = body["verificationMaterial"]["publicKey"]["hint"]
        payload, made = envelope["payload"], envelope["signatures"][0]["sig"]
        if any(_base64(base64.b64decode(text)) != text for text in (payload, made)):
            raise ValueError("base64 in another spelling")
        only_form = {
            "mediaType": _MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": payload,
                "payloadType": _PAYLOAD_TYPE,
                "signatures": [{"sig": made, "keyid": ""}],
            },
        }
        if not isinstance(hint, str) or content != digest.canonical_json(only_form):
            raise ValueError("not in its one form")
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise VerificationError(
            f"the signature file is damaged or was changed ({error})", where=path, hint=_NEXT
        ) from error
    return {"key": hint, "payload": payload}


def _signed_files(signature: dict[str, str], where: Path) -> dict[str, str]:
    """Files and digests that the statement lists; only to be believed once the key has spoken."""
    try:
        predicate = json.loads(base64.b64decode(signature["payload"]))["predicate"]
        if predicate["serialization"] != _SERIALISATION:
            raise ValueError("files are left out or hashed in another way")
        return {entry["name"]: entry["digest"] for entry in predicate["resources"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise VerificationError(
            f"the signature's statement is not one of a bundle ({error})", where=where, hint=_NEXT
        ) from error


def _differences(signed: dict[str, str], found: dict[str, str]) -> list[str]:
    changed = [name for name in signed.keys() & found.keys() if signed[name] != found[name]]
    lists = {
        "changed": changed,
        "missing": signed.keys() - found.keys(),
        "extra": found.keys() - signed.keys(),
    }
    return [f"{word}: {', '.join(sorted(names))}" for word, names in lists.items() if names]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()

"""Signing keys, and signing and verification of a folder with OpenSSF model-signing.

Keys are ECDSA on P-256. The private key never leaves ``secrets/``; whoever receives a bundle needs
only the public key, and should get it by another way than the bundle. Signatures are in-toto
statements in a DSSE envelope. `verify_folder` fails closed. Beyond model-signing's own check it
refuses git files, empty folders, a signature file with unsigned content, and statements that leave
files out.
"""

from __future__ import annotations

import base64
import json
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core import digest
from workbench.core.errors import VerificationError
from workbench.core.workspace import Workspace, write_atomic
from workbench.detection.bundles import SIGNATURE_FILE

__all__ = ["public_key", "signing_key", "verify_folder"]

_PRIVATE_KEY_FILE, _PUBLIC_KEY_FILE = "signing-key.pem", "signing-key.pub.pem"


@dataclass(frozen=True)
class SigningKey:
    """Paths of the private and public key, and the fingerprint of the pair."""

    private: Path
    public: Path
    fingerprint: str


def signing_key(workspace: Workspace) -> SigningKey:
    """Signing key of a workspace; generated at first use.

    Raises:
        VerificationError: The key is invalid, or other users can read it.
    """
    private = workspace.secrets / _PRIVATE_KEY_FILE
    if not private.exists():
        workspace.secrets.mkdir(parents=True, exist_ok=True)
        workspace.secrets.chmod(0o700)
        _generate_key(private)
    if stat.S_IMODE(private.stat().st_mode) & 0o077:
        raise VerificationError(
            "signing key can be read by other users",
            where=private,
            hint="Run `chmod 600` on it; if it was copied, delete it and sign again with a new key",
        )
    public = workspace.secrets / _PUBLIC_KEY_FILE
    pem = _public_key_pem(private)
    if not public.exists() or public.read_bytes() != pem:
        write_atomic(public, pem)
    return SigningKey(private, public, digest.of_bytes(pem))


def public_key(workspace: Workspace) -> Path:
    """Public key of a workspace; unlike `signing_key` this never generates one.

    Raises:
        VerificationError: The workspace has no key.
    """
    if (workspace.secrets / _PRIVATE_KEY_FILE).exists():
        return signing_key(workspace).public
    raise VerificationError(
        "workspace has no signing key",
        where=workspace.secrets / _PUBLIC_KEY_FILE,
        hint="Give the signer's public key with --key",
    )


def key_fingerprint(public: Path) -> str:
    """SHA-256 of a public key in PEM form (SubjectPublicKeyInfo), 64 hex digits.

    Raises:
        VerificationError: The file is not a public key on the curve P-256.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(public.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise VerificationError(
            "public key cannot be read", where=public, hint="Give the signer's .pub.pem file"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise VerificationError("public key is not a P-256 key", where=public)
    return digest.of_bytes(_to_pem(key))


def _generate_key(path: Path) -> None:
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


def _public_key_pem(private: Path) -> bytes:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(private.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise VerificationError(
            "signing key cannot be read",
            where=private,
            hint="Restore it from a backup, or delete it and sign again with a new key",
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise VerificationError("signing key is not an elliptic-curve key", where=private)
    return _to_pem(key.public_key())


def _to_pem(key: object) -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - narrowed by both callers
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_SERIALISATION = {
    "method": "files",
    "hash_type": "sha256",
    "allow_symlinks": False,
    "ignore_paths": [SIGNATURE_FILE],
}
_MAX_SIGNATURE_BYTES = 4 * 2**20
_HINT = "Do not load it; download it again from where it was released"


@dataclass(frozen=True)
class VerifiedFolder:
    """A verified folder.

    Attributes:
        files: Digest of each file, without the signature.
        key: Fingerprint of the public key.
        signature: Digest of the signature file.
    """

    folder: Path
    files: dict[str, str]
    key: str
    signature: str


def sign_folder(folder: Path, key: SigningKey) -> VerifiedFolder:
    """Write ``folder/signature`` over all other files, then verify it.

    Raises:
        VerificationError: The folder is empty or has something that cannot be signed.
    """
    from model_signing import signing

    _file_digests(folder)
    config = signing.Config()  # type: ignore[no-untyped-call]
    config = config.use_elliptic_key_signer(private_key=key.private)
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / SIGNATURE_FILE
        config.set_hashing_config(_hashing_config()).sign(folder, written)
        # In canonical form, so that `verify_folder` can refuse every other form.
        content = digest.canonical_json(json.loads(written.read_bytes()))
    write_atomic(folder / SIGNATURE_FILE, content)
    return verify_folder(folder, key.public)


def verify_folder(folder: Path, public: Path) -> VerifiedFolder:
    """Verify every byte of a signed folder.

    Args:
        folder: With its ``signature``.
        public: PEM file of the expected public key.

    Raises:
        VerificationError: The signature is invalid, or a file is changed, missing or extra; the
            message names the files.
    """
    from model_signing import verifying

    expected_key = key_fingerprint(public)
    folder = folder.resolve()
    files = _file_digests(folder)
    signature = _read_signature(folder / SIGNATURE_FILE)
    signed = _signed_files(signature, folder / SIGNATURE_FILE)
    if signature["key"] != expected_key:
        raise VerificationError(
            f"signed with the key {digest.shorten(signature['key'])}…, "
            f"not with {digest.shorten(expected_key)}…",
            where=folder,
            hint="Give the public key of whoever released it with --key",
        )
    check = verifying.Config()  # type: ignore[no-untyped-call]
    check = check.use_elliptic_key_verifier(public_key=public).set_hashing_config(_hashing_config())
    differences = _differences(signed, files)
    try:
        check.verify(folder, folder / SIGNATURE_FILE)
    except Exception as error:  # any failure inside means not verified
        if not str(error).startswith("Signature mismatch:"):
            raise VerificationError(
                "signature does not match key and statement",
                where=folder / SIGNATURE_FILE,
                hint=_HINT,
            ) from error
        differences = differences or [str(error)]
    if differences:
        raise VerificationError("; ".join(differences), where=folder, hint=_HINT)
    return VerifiedFolder(folder, files, expected_key, digest.of_file(folder / SIGNATURE_FILE))


def _hashing_config() -> Any:
    from model_signing import hashing

    config = hashing.Config()  # type: ignore[no-untyped-call]
    return config.set_ignored_paths(paths=[SIGNATURE_FILE], ignore_git_paths=False)


def _file_digests(folder: Path) -> dict[str, str]:
    """Digest of every file but the signature; refuses links and special files."""
    if not folder.is_dir():
        raise VerificationError("bundle folder does not exist", where=folder)
    digests: dict[str, str] = {}
    try:
        for parent, folders, names in os.walk(folder, onerror=_raise_error):
            here = Path(parent)
            if not folders and not names and here != folder:
                raise VerificationError("bundle has an empty folder", where=here, hint=_HINT)
            for name in (*folders, *names):
                path = here / name
                if path.is_symlink() or not (path.is_dir() or path.is_file()):
                    raise VerificationError("not a regular file or folder", where=path, hint=_HINT)
                if path.is_file() and path != folder / SIGNATURE_FILE:
                    digests[path.relative_to(folder).as_posix()] = digest.of_file(path)
    except OSError as error:
        raise VerificationError(
            f"bundle cannot be read: {error.strerror}", where=error.filename or folder
        ) from error
    if not digests:
        raise VerificationError("bundle is empty", where=folder, hint=_HINT)
    return dict(sorted(digests.items()))


def _raise_error(error: OSError) -> None:
    raise error


def _read_signature(path: Path) -> dict[str, str]:
    """Key hint and payload of a signature file without any other content."""
    if not path.is_file():
        raise VerificationError(
            "bundle is not signed", where=path, hint="Only released bundles are signed"
        )
    try:
        if path.stat().st_size > _MAX_SIGNATURE_BYTES:
            raise ValueError("too large")
        content = path.read_bytes()
        body = json.loads(content)
        envelope = body["dsseEnvelope"]
        hint = body["verificationMaterial"]["publicKey"]["hint"]
        payload, sig = envelope["payload"], envelope["signatures"][0]["sig"]
        if any(_base64(base64.b64decode(text)) != text for text in (payload, sig)):
            raise ValueError("base64 is not canonical")
        canonical = {
            "mediaType": _MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": payload,
                "payloadType": _PAYLOAD_TYPE,
                "signatures": [{"sig": sig, "keyid": ""}],
            },
        }
        if not isinstance(hint, str) or content != digest.canonical_json(canonical):
            raise ValueError("not in canonical form")
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise VerificationError(
            f"signature file is damaged or was changed ({error})", where=path, hint=_HINT
        ) from error
    return {"key": hint, "payload": payload}


def _signed_files(signature: dict[str, str], where: Path) -> dict[str, str]:
    """Files and digests listed in the statement; not trusted before the signature is verified."""
    try:
        predicate = json.loads(base64.b64decode(signature["payload"]))["predicate"]
        if predicate["serialization"] != _SERIALISATION:
            raise ValueError("files are left out or hashed differently")
        return {entry["name"]: entry["digest"] for entry in predicate["resources"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise VerificationError(
            f"statement of the signature is invalid ({error})", where=where, hint=_HINT
        ) from error


def _differences(signed: dict[str, str], present: dict[str, str]) -> list[str]:
    changed = [name for name in signed.keys() & present.keys() if signed[name] != present[name]]
    lists = {
        "changed": changed,
        "missing": signed.keys() - present.keys(),
        "extra": present.keys() - signed.keys(),
    }
    return [f"{word}: {', '.join(sorted(names))}" for word, names in lists.items() if names]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()

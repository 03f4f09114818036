"""Signing keys, and signing and verification of a folder (OpenSSF model-signing)."""

from __future__ import annotations

import base64
import json
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core import digest, workspace
from workbench.core.errors import VerificationError
from workbench.core.workspace import Workspace

_PRIVATE_KEY_FILE, _PUBLIC_KEY_FILE = "signing-key.pem", "signing-key.pub.pem"


@dataclass(frozen=True)
class SigningKey:
    """Where the two halves lie, and the fingerprint that names the pair."""

    private: Path
    public: Path
    fingerprint: str


def signing_key(place: Workspace) -> SigningKey:
    """This workbench's key; it is generated when there is none yet.

    Raises:
        VerificationError: The key cannot be used, or others on the machine can read it.
    """
    private = place.secrets / _PRIVATE_KEY_FILE
    if not private.exists():
        place.secrets.mkdir(parents=True, exist_ok=True)
        place.secrets.chmod(0o700)
        _generate_key(private)
    if stat.S_IMODE(private.stat().st_mode) & 0o077:
        raise VerificationError(
            "the signing key can be read by other users, so its signatures prove nothing",
            where=private,
            hint="If nobody has: `chmod 600` it; otherwise delete it and sign again with a new one",
        )
    public = place.secrets / _PUBLIC_KEY_FILE
    pem = _public_key_pem(private)
    if not public.exists() or public.read_bytes() != pem:
        workspace.write_atomic(public, pem)
    return SigningKey(private, public, digest.of_bytes(pem))


def public_key(place: Workspace) -> Path:
    """The public half on disk; unlike `signing_key` this never makes a key.

    Raises:
        VerificationError: No key was made here, so nothing can have been signed here.
    """
    if (place.secrets / _PRIVATE_KEY_FILE).exists():
        return signing_key(place).public
    raise VerificationError(
        "this workbench has no signing key to check against",
        where=place.secrets / _PUBLIC_KEY_FILE,
        hint="Name the signer's public key with --key",
    )


def key_fingerprint(public: Path) -> str:
    """SHA-256 of a public key in PEM form (SubjectPublicKeyInfo), 64 hex digits.

    Raises:
        VerificationError: The file is no public key on the curve P-256.
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
        raise VerificationError(
            "releases are signed with a P-256 key, this is another kind", where=public
        )
    return digest.of_bytes(_to_pem(key))


def _generate_key(path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".key-")  # made with mode 0600
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(pem)
            os.fsync(stream.fileno())
        # A link, unlike a rename, never replaces: of two first users one wins and both use its key.
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
            hint="Restore it from a backup, or delete it and sign again with a new one",
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


# ---- Signing a folder and checking it, with OpenSSF model-signing (in-toto statement, DSSE envelope).
#
# `verify` fails closed. On top of model-signing's own check it refuses what that lets pass: files
# of git, empty folders, a signature file with anything in it that the signature does not cover,
# and statements that ask to leave files out.


SIGNATURE_FILE = "signature"

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_SERIALISATION = {
    "method": "files",
    "hash_type": "sha256",
    "allow_symlinks": False,
    "ignore_paths": [SIGNATURE_FILE],
}
_MAX_SIGNATURE_BYTES = 4 * 2**20
_HINT = "Do not load it; fetch it again from where it was released"


@dataclass(frozen=True)
class VerifiedFolder:
    """What was found to hold: digest of each file, without the signature's own beside it."""

    folder: Path
    files: dict[str, str]
    key: str
    signature: str


def sign_folder(folder: Path, key: SigningKey) -> VerifiedFolder:
    """Write ``folder/signature`` over all other files there, then check it as a receiver would.

    Raises:
        VerificationError: The folder holds no files, or something that cannot be signed.
    """
    from model_signing import signing

    _file_digests(folder)
    config = signing.Config()  # type: ignore[no-untyped-call]
    config = config.use_elliptic_key_signer(private_key=key.private)
    with tempfile.TemporaryDirectory() as elsewhere:
        made = Path(elsewhere) / SIGNATURE_FILE
        config.set_hashing_config(_hashing_config()).sign(folder, made)
        # Kept in one spelling, so that `verify` can refuse every other.
        content = digest.canonical_json(json.loads(made.read_bytes()))
    workspace.write_atomic(folder / SIGNATURE_FILE, content)
    return verify_folder(folder, key.public)


def verify_folder(folder: Path, public: Path) -> VerifiedFolder:
    """Check every byte of a signed folder.

    Args:
        folder: The bundle, with its ``signature``.
        public: PEM file of the public key that it must have been signed with.

    Raises:
        VerificationError: Anything at all does not hold; each changed, missing or extra file
            is named.
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
            hint="Check with the public key of whoever released it (--key)",
        )
    check = verifying.Config()  # type: ignore[no-untyped-call]
    check = check.use_elliptic_key_verifier(public_key=public).set_hashing_config(_hashing_config())
    differences = _differences(signed, files)
    try:
        check.verify(folder, folder / SIGNATURE_FILE)
    except Exception as error:  # whatever goes wrong inside, the answer is no
        if not str(error).startswith("Signature mismatch:"):
            raise VerificationError(
                "the signature was not made by this key over this statement",
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
    """Digest of every file but the signature; refuses whatever is no plain file or folder."""
    if not folder.is_dir():
        raise VerificationError("no such bundle folder", where=folder)
    found: dict[str, str] = {}
    try:
        for parent, folders, names in os.walk(folder, onerror=_raise_error):
            here = Path(parent)
            if not folders and not names and here != folder:
                raise VerificationError("empty folder in the bundle", where=here, hint=_HINT)
            for name in (*folders, *names):
                path = here / name
                if path.is_symlink() or not (path.is_dir() or path.is_file()):
                    raise VerificationError(
                        "neither a plain file nor a folder", where=path, hint=_HINT
                    )
                if path.is_file() and path != folder / SIGNATURE_FILE:
                    found[path.relative_to(folder).as_posix()] = digest.of_file(path)
    except OSError as error:
        raise VerificationError(
            f"bundle cannot be read: {error.strerror}", where=error.filename or folder
        ) from error
    if not found:
        raise VerificationError("the bundle is empty", where=folder, hint=_HINT)
    return dict(sorted(found.items()))


def _raise_error(error: OSError) -> None:
    raise error


def _read_signature(path: Path) -> dict[str, str]:
    """Key hint and payload of a signature file that says nothing but what it must."""
    if not path.is_file():
        raise VerificationError(
            "the bundle is not signed", where=path, hint="Only a released bundle has a signature"
        )
    try:
        if path.stat().st_size > _MAX_SIGNATURE_BYTES:
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
            f"the signature file is damaged or was changed ({error})", where=path, hint=_HINT
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
            f"the signature's statement is not one of a bundle ({error})", where=where, hint=_HINT
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

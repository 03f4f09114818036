"""The key that signs releases: ECDSA on P-256, one for each workbench, made at first use.

The private half never leaves ``secrets/``. Whoever receives a bundle needs the public half only,
and should get it by another way than the bundle.
"""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from workbench import digest, workspace
from workbench.errors import VerificationError
from workbench.workspace import Workspace

_PRIVATE, _PUBLIC = "signing-key.pem", "signing-key.pub.pem"


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
    private = place.secrets / _PRIVATE
    if not private.exists():
        place.secrets.mkdir(parents=True, exist_ok=True)
        place.secrets.chmod(0o700)
        _generate(private)
    if stat.S_IMODE(private.stat().st_mode) & 0o077:
        raise VerificationError(
            "the signing key can be read by other users, so its signatures prove nothing",
            where=private,
            hint="If nobody has: `chmod 600` it; otherwise delete it and sign again with a new one",
        )
    public = place.secrets / _PUBLIC
    pem = _public_half(private)
    if not public.exists() or public.read_bytes() != pem:
        workspace.write_atomic(public, pem)
    return SigningKey(private, public, digest.of_bytes(pem))


def public_key(place: Workspace) -> Path:
    """The public half on disk; unlike `signing_key` this never makes a key.

    Raises:
        VerificationError: No key was made here, so nothing can have been signed here.
    """
    if (place.secrets / _PRIVATE).exists():
        return signing_key(place).public
    raise VerificationError(
        "this workbench has no signing key to check against",
        where=place.secrets / _PUBLIC,
        hint="Name the signer's public key with --key",
    )


def fingerprint(public: Path) -> str:
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
    return digest.of_bytes(_pem(key))


def _generate(path: Path) -> None:
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


def _public_half(private: Path) -> bytes:
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
    return _pem(key.public_key())


def _pem(key: object) -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - narrowed by both callers
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )

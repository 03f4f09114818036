"""Signing keys, ECDSA signatures, and signed statements in DSSE envelopes.

Keys are ECDSA on P-256 (FIPS 186-5) with SHA-256; see `workbench.core.keyring`. Whoever verifies
needs only the public key, and should get it by another way than what was signed.
An envelope is a Sigstore bundle (v0.3) around an in-toto statement, as OpenSSF model-signing writes
it. Every check fails closed.

A signature has one form only: DER with the smaller of s and n - s. Both values of s verify, so
without this rule anyone could make a second valid signature, with another digest, from the first.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from workbench.core import digest
from workbench.core.errors import Refusal, VerificationError
from workbench.core.types import Json

__all__ = ["sign"]


@dataclass(frozen=True)
class SigningKey:
    """Paths of the private and public key, and the fingerprint of the pair."""

    private: Path
    public: Path
    fingerprint: str


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


def public_pem(private: Path) -> bytes:
    """The PEM file of the public key of a private one.

    Raises:
        VerificationError: It cannot be read, or is not an elliptic-curve key.
    """
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


_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Order n of P-256's group (SEC 2, section 2.4.2)."""


def sign(key: SigningKey, data: bytes) -> bytes:
    """The DER signature of ``data``, in its one form."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    private = load_pem_private_key(key.private.read_bytes(), password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)  # noqa: S101 - signing_key has checked
    r, s = utils.decode_dss_signature(private.sign(data, ec.ECDSA(hashes.SHA256())))
    return utils.encode_dss_signature(r, min(s, _ORDER - s))


def is_signed(public: Path, data: bytes, signature: bytes, *, any_form: bool = False) -> bool:
    """Whether ``signature`` is the signature of ``data`` by the owner of a public key.

    Args:
        public: PEM file of the key.
        any_form: Take both values of s, for signatures from before there was one form.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = load_pem_public_key(public.read_bytes())
    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - key_fingerprint has checked
    try:
        r, s = utils.decode_dss_signature(signature)
        if utils.encode_dss_signature(r, s) != signature or (not any_form and 2 * s > _ORDER):
            return False
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_MAX_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Envelope:
    """A signed statement whose signature was verified.

    Attributes:
        key: Fingerprint of the key.
        statement: The in-toto statement.
        one_form: Whether the signature has the one form that it can have.
        digest: Of the envelope's bytes.
    """

    key: str
    statement: Json
    one_form: bool
    digest: str


def envelope_signer(content: bytes) -> str | None:
    """Fingerprint of the key that an envelope says it was signed with; None if it says none."""
    try:
        return str(json.loads(content)["verificationMaterial"]["publicKey"]["hint"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def make_envelope(key: SigningKey, statement: Json) -> bytes:
    """The bytes of a signed statement, in canonical form."""
    payload = digest.canonical_json(statement)
    return _envelope(key.fingerprint, _base64(payload), _base64(sign(key, _signed_bytes(payload))))


def open_envelope(content: bytes, public: Path, *, where: object, hint: str = "") -> Envelope:
    """Verify a signed statement.

    Args:
        content: What `make_envelope` gave; any other spelling of it is refused.
        public: PEM file of the expected public key.
        where: What is verified, for messages.
        hint: What to do about a damaged one.

    Raises:
        VerificationError: It is damaged, or not signed with this key.
    """
    expected = key_fingerprint(public)
    try:
        if len(content) > _MAX_BYTES:
            raise ValueError("too large")
        body = json.loads(content)
        fingerprint = body["verificationMaterial"]["publicKey"]["hint"]
        payload_text = body["dsseEnvelope"]["payload"]
        signature_text = body["dsseEnvelope"]["signatures"][0]["sig"]
        payload, signature = base64.b64decode(payload_text), base64.b64decode(signature_text)
        if (_base64(payload), _base64(signature)) != (payload_text, signature_text):
            raise ValueError("base64 is not canonical")
        if content != _envelope(fingerprint, payload_text, signature_text):
            raise ValueError("not in canonical form")
        statement = json.loads(payload)
        if not isinstance(statement, dict):
            raise ValueError("no statement")
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise VerificationError(
            f"signature file is damaged or was changed ({error})",
            where=where,
            hint=hint or None,
            reason=Refusal.SIGNATURE_INVALID,
        ) from error
    if fingerprint != expected:
        raise VerificationError(
            f"signed with the key {digest.shorten(str(fingerprint))}…, "
            f"not with {digest.shorten(expected)}…",
            where=where,
            hint="Give the public key of whoever released it with --key",
            reason=Refusal.WRONG_KEY,
        )
    signed = _signed_bytes(payload)
    one_form = is_signed(public, signed, signature)
    if not one_form and not is_signed(public, signed, signature, any_form=True):
        raise VerificationError(
            "signature does not match key and statement",
            where=where,
            hint=hint or None,
            reason=Refusal.SIGNATURE_INVALID,
        )
    return Envelope(expected, statement, one_form, digest.of_bytes(content))


def _envelope(fingerprint: str, payload: str, signature: str) -> bytes:
    return digest.canonical_json(
        {
            "mediaType": _MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": fingerprint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": payload,
                "payloadType": _PAYLOAD_TYPE,
                "signatures": [{"sig": signature, "keyid": ""}],
            },
        }
    )


def _signed_bytes(payload: bytes) -> bytes:
    """Pre-authentication encoding of DSSE v1: what the signature is over."""
    kind = _PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# Signatures of records: a few bytes beside a record, not an envelope.

_ALGORITHM = "ecdsa-p256-sha256"


def sign_reference(key: SigningKey, purpose: str, ref: str) -> Json:
    """The signature of a record's reference, whose digest covers the record's content.

    Args:
        purpose: What is signed; it separates the uses of a key.
        ref: ``KIND/DIGEST``.
    """
    text = _base64(sign(key, _reference_bytes(purpose, ref)))
    return {"algorithm": _ALGORITHM, "key": key.fingerprint, "signature": text}


def check_reference(signature: object, purpose: str, ref: str, keys: Iterable[Path]) -> None:
    """Check what `sign_reference` gave.

    Args:
        keys: PEM files of the public keys of which one should have signed.

    Raises:
        VerificationError: It is not signed, or not by one of these keys.
    """
    if signature is None:
        raise VerificationError(f"the {purpose} is not signed", where=ref, reason=Refusal.UNSIGNED)
    if not isinstance(signature, dict) or signature.get("algorithm") != _ALGORITHM:
        raise VerificationError(f"the signature of the {purpose} is damaged", where=ref)
    public = next((key for key in keys if key_fingerprint(key) == signature.get("key")), None)
    if public is None:
        raise VerificationError(
            f"the {purpose} was signed with another key", where=ref, reason=Refusal.WRONG_KEY
        )
    try:
        content = base64.b64decode(str(signature.get("signature", "")), validate=True)
    except ValueError:
        content = b""
    # Both forms: nothing depends on the digest of such a signature.
    if not is_signed(public, _reference_bytes(purpose, ref), content, any_form=True):
        raise VerificationError(
            f"the signature of the {purpose} is not valid",
            where=ref,
            reason=Refusal.SIGNATURE_INVALID,
        )


def _reference_bytes(purpose: str, ref: str) -> bytes:
    return f"workbench {purpose}\n{ref}\n".encode()

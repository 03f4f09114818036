"""Signed claims about a release, each an in-toto statement in a DSSE envelope of its own.

A release starts with four: gate report, model card, SBOM, and how it was made. Later ones, such as
a waiver or a field report, are added beside them; what was signed before is never touched.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from workbench.audit import log as audit
from workbench.core.errors import RecordError, Refusal, VerificationError
from workbench.core.keyring import Keyring, Role, public_key, read_keyring, signing_key
from workbench.core.names import check_person
from workbench.core.signatures import make_envelope, open_envelope
from workbench.core.types import Json
from workbench.records.base import Ref, digest_of, short_ref
from workbench.records.model_types import Claim, ClaimType, Release
from workbench.records.store import Store

__all__ = ["SignedClaim", "add_claim", "read_claims"]

ENVELOPE_FILE = "envelope.json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"

PREDICATE_TYPES: Final[dict[ClaimType, str]] = {
    "gate-report": "https://in-toto.io/attestation/test-result/v0.1",
    "model-card": "https://huggingface.co/docs/hub/model-cards",
    "sbom": "https://cyclonedx.org/bom",
    "provenance": "https://slsa.dev/provenance/v1",
    "waiver": "urn:workbench:waiver:1",
    "field-report": "urn:workbench:field-report:1",
}
_ROLES: Final[dict[ClaimType, Role]] = {"field-report": "rollout"}


@dataclass(frozen=True)
class SignedClaim:
    """A claim whose signature was verified.

    Attributes:
        predicate: What it says.
        envelope: The signed bytes.
    """

    ref: Ref
    record: Claim
    predicate: Json
    envelope: bytes


def add_claim(
    store: Store, release: Ref, kind: ClaimType, predicate: Json, *, by: str | None = None
) -> Ref:
    """Sign a claim about a release, store it and log it.

    Args:
        predicate: Plain data; with the predicate type of this kind.
        by: Who claims it; the account that runs the process by default.

    Raises:
        RecordError: There is no such release.
        VerificationError: The key has expired.
    """
    ref = sign_claim(store, release, kind, predicate, by=by)
    by = store.get(ref, Claim).by
    audit.append(store.workspace, "claimed", by=by, subjects=(ref, release), type=kind)
    return ref


def sign_claim(
    store: Store, release: Ref, kind: ClaimType, predicate: Json, *, by: str | None = None
) -> Ref:
    """`add_claim` without its entry in the audit log, for claims that come with the release."""
    record = store.get(release, Release)
    by = check_person(by or getpass.getuser(), "name of who makes the claim")
    key = signing_key(store.workspace, _ROLES.get(kind, "release"))
    signed_at = datetime.now(UTC).isoformat(timespec="seconds")
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": ref, "digest": {"sha256": digest_of(ref)}} for ref in (release, record.bundle)
        ],
        "predicateType": PREDICATE_TYPES[kind],
        "predicate": predicate,
        "workbench": {"type": kind, "by": by, "signed_at": signed_at},
    }
    claim = Claim(release=release, type=kind, by=by, signed_at=signed_at, key=key.fingerprint)
    return store.put(claim, {ENVELOPE_FILE: make_envelope(key, statement)})


def read_claims(store: Store, release: Ref) -> tuple[list[SignedClaim], dict[Ref, str]]:
    """The claims about a release, oldest first, and why others do not count.

    A claim that was signed with a revoked key does not count.
    """
    counted: list[SignedClaim] = []
    refused: dict[Ref, str] = {}
    ring: Keyring | None = None
    for ref in store.refs(Claim.KIND):
        try:
            record = store.get(ref, Claim)
            if record.release != release:
                continue
            ring = ring or read_keyring(store.workspace)
            counted.append(_verified(store, ref, record, ring))
        except (RecordError, VerificationError) as error:
            refused[ref] = str(error)
    order = list(PREDICATE_TYPES)
    counted.sort(key=lambda one: (one.record.signed_at, order.index(one.record.type)))
    return counted, refused


def _verified(store: Store, ref: Ref, record: Claim, ring: Keyring) -> SignedClaim:
    content = store.read_payload(ref, ENVELOPE_FILE)
    role = _ROLES.get(record.type, "release")
    public = public_key(store.workspace, role, signer=record.key, at=record.signed_at, ring=ring)
    statement = open_envelope(content, public, where=ref).statement
    said = {"type": record.type, "by": record.by, "signed_at": record.signed_at}
    subjects = {one["digest"]["sha256"] for one in statement["subject"]}
    if (
        statement["predicateType"] != PREDICATE_TYPES[record.type]
        or statement["workbench"] != said
        or digest_of(record.release) not in subjects
    ):
        raise VerificationError(
            "the claim's record says something else than its signature",
            where=short_ref(ref),
            reason=Refusal.CLAIM_INVALID,
        )
    return SignedClaim(ref, record, statement["predicate"], content)

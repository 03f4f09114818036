"""Signed claims about a release, read and verified: `workbench.release.claims` makes them.

Each is an in-toto statement in a DSSE envelope of its own: gate report, model card, SBOM and how it
was made come with the release; waivers and field reports are added later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from workbench.core.errors import RecordError, Refusal, VerificationError
from workbench.core.keyring import Keyring, Role, public_key, read_keyring
from workbench.core.signatures import open_envelope
from workbench.core.text import short_repr
from workbench.core.types import Json
from workbench.records.base import FrozenModel, Ref, digest_of, short_ref
from workbench.records.model_types import Claim, ClaimType
from workbench.records.store import Store

__all__ = ["PREDICATE_TYPES", "SignedClaim", "Waiver", "read_claims", "read_waivers"]

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
CLAIM_ROLES: Final[dict[ClaimType, Role]] = {"field-report": "rollout"}


@short_repr
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


class Waiver(FrozenModel):
    """A gate that a person let pass for one release, until a day.

    Attributes:
        verdict: What the gate said.
        by: Who answers for it.
        expires: Last day, ISO 8601.
    """

    gate: str
    verdict: str
    by: str
    reason: str
    expires: str

    @property
    def expired(self) -> bool:
        """Whether its last day has passed, in UTC."""
        return self.expires < datetime.now(UTC).date().isoformat()

    def __str__(self) -> str:
        state = "expired" if self.expired else "until"
        return f"{self.gate} waived by {self.by} {state} {self.expires}: {self.reason}"


def read_claims(store: Store, release: Ref) -> tuple[list[SignedClaim], dict[Ref, str]]:
    """The claims about a release, oldest first, and why others do not count.

    A claim that was signed with a revoked key does not count.
    """
    refused: dict[Ref, str] = {}
    return _read(store, lambda record: record.release == release, refused), refused


def _read(
    store: Store, keep: Callable[[Claim], bool], refused: dict[Ref, str]
) -> list[SignedClaim]:
    counted: list[SignedClaim] = []
    ring: Keyring | None = None
    for ref in store.refs(Claim.KIND):
        try:
            record = store.get(ref, Claim)
            if not keep(record):
                continue
            ring = ring or read_keyring(store.workspace)
            counted.append(_verified(store, ref, record, ring))
        except (RecordError, VerificationError) as error:
            refused[ref] = str(error)
    order = list(PREDICATE_TYPES)
    counted.sort(key=lambda one: (one.record.signed_at, order.index(one.record.type)))
    return counted


def _verified(store: Store, ref: Ref, record: Claim, ring: Keyring) -> SignedClaim:
    content = store.read_payload(ref, ENVELOPE_FILE)
    role = CLAIM_ROLES.get(record.type, "release")
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


def read_waivers(store: Store) -> dict[Ref, list[Waiver]]:
    """The signed waivers of every release that has one, expired ones included, oldest first."""
    found: dict[Ref, list[Waiver]] = {}
    for one in _read(store, lambda record: record.type == "waiver", {}):
        found.setdefault(one.record.release, []).append(Waiver.model_validate(one.predicate))
    return found

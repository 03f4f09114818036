"""Sign claims about a release, each an in-toto statement in a DSSE envelope of its own.

A release starts with four: gate report, model card, SBOM, and how it was made. Later ones, such as
a waiver or a field report, are added beside them; what was signed before is never touched.
"""

from __future__ import annotations

import getpass
from datetime import UTC, date, datetime, timedelta

from workbench.audit import log as audit
from workbench.core.errors import ParameterError
from workbench.core.keyring import signing_key
from workbench.core.names import check_person, check_text
from workbench.core.signatures import make_envelope
from workbench.core.types import Json
from workbench.records.base import GateReport, Ref, Verdict, digest_of
from workbench.records.claims import (
    CLAIM_ROLES,
    ENVELOPE_FILE,
    PREDICATE_TYPES,
    STATEMENT_TYPE,
    Waiver,
)
from workbench.records.model_types import Claim, ClaimType, Release
from workbench.records.store import Store

__all__ = ["waive"]

_MAX_WAIVER_DAYS = 180
_MAX_REASON_BYTES = 1000


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
    key = signing_key(store.workspace, CLAIM_ROLES.get(kind, "release"))
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


def waive(
    store: Store, release: Ref, gate: str, *, by: str, reason: str, until: date
) -> tuple[Ref, Waiver]:
    """Let a release pass one gate until a day: signed, with a reason, and shown wherever it is.

    A waiver lets the release be sent to vehicles; it never makes it champion.

    Args:
        gate: Name of a required gate of the release that did not pass.
        by: Who answers for it.
        until: The last day, at most 180 days ahead.

    Raises:
        ParameterError: The gate needs no waiver, there is no such gate, or an argument is invalid.
    """
    by = check_person(by, "name of who waives")
    reason = check_text(reason, "reason", max_bytes=_MAX_REASON_BYTES)
    record = store.get(release, Release)
    gates = {one.name: one for one in store.get(record.gates, GateReport).gates}
    open_gates = [n for n, g in gates.items() if g.required and g.verdict is not Verdict.PASS]
    if gate not in open_gates:
        raise ParameterError(
            f"gate {gate!r} needs no waiver" if gate in gates else f"no gate {gate!r}",
            where=record.gates,
            hint=f"Required gates that did not pass: {', '.join(open_gates) or 'none'}",
        )
    today = datetime.now(UTC).date()
    if not today <= until <= today + timedelta(days=_MAX_WAIVER_DAYS):
        raise ParameterError(
            f"a waiver lasts until a day in the next {_MAX_WAIVER_DAYS} days, not {until}"
        )
    waiver = Waiver(
        gate=gate,
        verdict=gates[gate].verdict.value,
        by=by,
        reason=reason,
        expires=until.isoformat(),
    )
    ref = sign_claim(store, release, "waiver", waiver.model_dump(mode="json"), by=by)
    audit.append(
        store.workspace,
        "waived",
        by=by,
        subjects=(ref, release),
        gate=gate,
        until=waiver.expires,
        reason=reason,
    )
    return ref, waiver

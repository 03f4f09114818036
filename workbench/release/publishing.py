"""Releases: from a bundle and its gate report to a signed folder and a `Release` record."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from workbench.audit import log as audit
from workbench.core.errors import ParameterError, RecordError, Refusal, VerificationError
from workbench.core.keyring import signing_key
from workbench.core.names import check_name, check_person, check_text
from workbench.core.signatures import SigningKey, sign_reference
from workbench.core.types import Json
from workbench.core.workspace import Workspace, exclusive, write_atomic
from workbench.detection.bundles import SIGNATURE_FILE, refuse_unsafe
from workbench.records import releases
from workbench.records.base import GateReport, Ref, digest_of, make_ref
from workbench.records.claims import read_claims
from workbench.records.model_types import ClaimType, ExportBundle, Release, Rollback
from workbench.records.releases import (
    RegisteredRelease,
    SignedRelease,
    may_promote,
    release_folder,
)
from workbench.records.store import Store
from workbench.release import signing
from workbench.release.claims import sign_claim
from workbench.release.evidence import Evidence, Use, check_gate_report, check_licences, gather
from workbench.release.model_card import make_model_card
from workbench.release.sbom import make_sbom

__all__ = ["publish_release", "verify_release"]

_MAX_NAME_BYTES = 64
_LOCK_TIMEOUT_S = 60
_MAX_REASON_BYTES = 1000


@dataclass(frozen=True)
class PublishedRelease:
    """A release.

    Attributes:
        ref: Reference of its record.
        folder: The signed folder.
        promoted: Whether it may become champion.
        version: Its number under the model's name.
    """

    ref: Ref
    folder: Path
    promoted: bool
    verified: signing.VerifiedFolder
    version: int


def publish_release(
    store: Store, bundle: Ref, gates: Ref, model: str, *, use: Use = "commercial"
) -> PublishedRelease:
    """Write and sign ``releases/MODEL/DIGEST``; a repeated call gives the same release.

    Candidates that failed the gates are released too, see `PublishedRelease.promoted`. The
    signature covers model, version, verdict and gate report as well as every byte. Gate report,
    model card, SBOM and how it was made are signed apart, see `workbench.release.claims`.

    Args:
        store: With the records.
        bundle: Reference of the bundle.
        gates: Reference of the gate report on this bundle.
        model: Name of the model: lower-case letters, digits and ``._-``.
        use: What it is for: ``research`` allows data and models that forbid commercial use.

    Raises:
        ParameterError: The name is invalid, or the report is about another bundle.
        VerificationError: The folder of an earlier release of this bundle was changed, a licence
            forbids the use, or the gate report was edited or is stale.
    """
    check_name(model, "model name", lower_case=True, max_bytes=_MAX_NAME_BYTES)
    store.get(bundle, ExportBundle)
    report = store.get(gates, GateReport)
    if report.candidate != bundle:
        raise ParameterError(
            f"gate report is about {report.candidate}, not about this bundle",
            where=bundle,
            hint="Run validate on this bundle first",
            reason=Refusal.GATES_OTHER_BUNDLE,
        )
    key = signing_key(store.workspace)
    evidence = gather(store, bundle, gates)
    check_licences(evidence, use)
    with _numbering(store.workspace, model):
        known = releases.registered_releases(store.workspace, model)
        for earlier in reversed(known.releases):
            same = (earlier.record.bundle, earlier.record.gates) == (bundle, gates)
            if same and not earlier.older and earlier.version is not None:
                found = _published_before(store, earlier.ref, earlier.record, earlier.version)
                _sign_claims(store, earlier.ref, earlier.record, evidence)
                return found
        check_gate_report(store, evidence, known)
        signed = SignedRelease(
            model=model,
            version=known.next_version,
            bundle=bundle,
            gates=gates,
            verdict=report.verdict,
            promoted=may_promote(report),
            signed_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        verified = _signed_folder(store, signed, key)
        record = Release(
            **signed.fields,
            key=key.fingerprint,
            signature=verified.signature,
        )
        envelope = (verified.folder / SIGNATURE_FILE).read_text()
        ref = store.put(record, side={releases.SIGNATURE: envelope})
        claims = _sign_claims(store, ref, record, evidence)
        audit.append(
            store.workspace,
            "released",
            subjects=(ref, bundle, gates, *claims),
            model=model,
            version=signed.version,
            promoted=signed.promoted,
        )
    return PublishedRelease(ref, verified.folder, record.promoted, verified, signed.version)


@dataclass(frozen=True)
class RolledBack:
    """Result of `roll_back`: the record, and the releases before and after."""

    ref: Ref
    withdrawn: RegisteredRelease
    champion: RegisteredRelease


def roll_back(store: Store, model: str, *, by: str, reason: str) -> RolledBack:
    """Withdraw the champion of a model: the release before it is champion again.

    Each call goes back one release further. Releases stay as they are and can be named by version.

    Args:
        by: Who decides.
        reason: Why, in a sentence; it is kept with the rollback.

    Raises:
        ParameterError: A text is invalid.
        RecordError: There is no champion, or none before it.
        VerificationError: The folder of the release to go back to was changed.
    """
    by, reason = (
        check_person(by, "name of who rolls back"),
        check_text(reason, "reason", max_bytes=_MAX_REASON_BYTES),
    )
    key = signing_key(store.workspace)
    with _numbering(store.workspace, model):
        found = releases.registered_releases(store.workspace, model)
        found.require_any()
        champions = found.champions_before(frozenset())
        if len(champions) < 2:
            what = "no champion before this one" if champions else "no champion"
            raise RecordError(
                f"{model} has {what}", hint="`workbench releases` lists what was released"
            )
        restored, withdrawn = champions[-2:]
        verify_release(store.workspace, restored.ref)
        record = Rollback(
            model=model,
            withdrawn=withdrawn.ref,
            restored=restored.ref,
            after=found.next_version - 1,
            number=max((one.number for one in found.rollbacks), default=0) + 1,
            by=by,
            reason=reason,
            key=key.fingerprint,
        )
        signature = sign_reference(key, releases.ROLLBACK_PURPOSE, store.ref_of(record))
        ref = store.put(record, side={releases.SIGNATURE: signature})
        subjects = (ref, withdrawn.ref, restored.ref)
        audit.append(
            store.workspace, "rolled-back", by=by, subjects=subjects, model=model, reason=reason
        )
    return RolledBack(ref, withdrawn, restored)


def verify_release(
    workspace: Workspace, name: str, key: Path | None = None
) -> signing.VerifiedFolder:
    """Verify the folder of a release against its record and signature.

    Args:
        workspace: With the records.
        name: ``release/PREFIX``.
        key: Public key of the signer; by default that of the workspace.

    Raises:
        RecordError: No release or several have a digest with this prefix.
        VerificationError: The folder was changed, or the record is about another folder.
    """
    store = Store(workspace)
    record = store.get(_find_release(store, name), Release)
    folder = release_folder(workspace, record)
    verified = signing.verify_folder(folder, key or workspace)
    _check_against_record(store, record.bundle, verified)
    if (verified.key, verified.signature) != (record.key, record.signature):
        raise VerificationError(
            "folder was signed again after the release",
            where=folder,
            reason=Refusal.OTHER_RELEASE,
        )
    if verified.release is not None and record != Release(
        **verified.release.fields,
        key=record.key,
        signature=record.signature,
    ):
        raise VerificationError(
            "the record says something else than its signature",
            where=folder,
            reason=Refusal.OTHER_RELEASE,
        )
    return verified


def verify_released_folder(
    workspace: Workspace, folder: Path, key: Path | None = None
) -> signing.VerifiedFolder:
    """Verify a signed folder; among the workspace's releases it lies under its own model's name.

    Raises:
        VerificationError: It was changed, is not signed, or is another model's release.
    """
    verified = signing.verify_folder(folder, key or workspace)
    model = verified.folder.parent.name
    inside = verified.folder.parent.parent == (workspace.root / "releases").resolve()
    if inside and verified.release is not None and verified.release.model != model:
        raise VerificationError(
            f"folder is a release of {verified.release.model}, not of {model}",
            where=folder,
            reason=Refusal.OTHER_RELEASE,
        )
    return verified


def _sign_claims(store: Store, ref: Ref, record: Release, evidence: Evidence) -> list[Ref]:
    """Sign what is known about a release now; claims that there are stay as they are."""
    made = {claim.record.type for claim in read_claims(store, ref)[0]}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    card = make_model_card(ref, record, evidence)
    predicates: dict[ClaimType, Json] = {
        "gate-report": evidence.gate_report(),
        "model-card": {"file": "README.md", "mediaType": "text/markdown", "text": card},
        "sbom": make_sbom(ref, record, evidence, at=now),
        "provenance": evidence.provenance(),
    }
    missing = {kind: one for kind, one in predicates.items() if kind not in made}
    return [sign_claim(store, ref, kind, predicate) for kind, predicate in missing.items()]


def _numbering(workspace: Workspace, model: str) -> AbstractContextManager[None]:
    """Let one process at a time number a release of ``model``."""
    return exclusive(workspace, f"release-{model}", f"releasing {model}", timeout_s=_LOCK_TIMEOUT_S)


def _published_before(store: Store, ref: Ref, record: Release, version: int) -> PublishedRelease:
    """The release that there is; a folder that was removed is written again."""
    folder = release_folder(store.workspace, record)
    if not folder.exists():
        envelope = store.side(ref, releases.SIGNATURE).encode()
        with _new_folder(store, record.bundle, folder) as work:
            write_atomic(work / SIGNATURE_FILE, envelope)
    verified = signing.verify_folder(folder, store.workspace)
    _check_against_record(store, record.bundle, verified)
    if verified.signature != record.signature:
        raise VerificationError(
            "folder was signed again after the release",
            where=folder,
            hint="Move the folder away and release again",
        )
    return PublishedRelease(ref, folder, record.promoted, verified, version)


def _signed_folder(store: Store, release: SignedRelease, key: SigningKey) -> signing.VerifiedFolder:
    """Write and sign the folder of a new release, beside that of another report on the bundle."""
    folder = store.workspace.release_folder(release.model, digest_of(release.bundle))
    if folder.exists():
        folder = _beside(store, release, folder)
    if folder.exists():
        raise VerificationError(
            "folder of a release that has no valid record",
            where=folder,
            hint="Move the folder away and release again",
        )
    with _new_folder(store, release.bundle, folder) as work:
        signing.sign_folder(work, key, release)
    verified = signing.verify_folder(folder, key.public)
    _check_against_record(store, release.bundle, verified)
    return verified


def _beside(store: Store, release: SignedRelease, folder: Path) -> Path:
    """Another folder, beside that of an earlier release of the same bundle."""
    name = f"{folder.name}-{digest_of(release.gates)[:12]}"
    try:
        verified = signing.verify_folder(folder, store.workspace)
    except VerificationError as error:
        if error.reason != Refusal.KEY_REVOKED:
            raise
        return folder.with_name(f"{name}-{release.version}")
    _check_against_record(store, release.bundle, verified)
    return folder.with_name(name)


def _find_release(store: Store, name: str) -> Ref:
    prefix = name.removeprefix(f"{Release.KIND}/")
    matches = [ref for ref in store.refs(Release.KIND) if digest_of(ref).startswith(prefix)]
    if len(matches) != 1 or not prefix:
        count = len(matches) or "no"
        raise RecordError(
            f"{count} releases match {name!r}", where=store.root, hint="Give more digits, or a path"
        )
    return make_ref(Release.KIND, digest_of(matches[0]))


@contextmanager
def _new_folder(store: Store, bundle: Ref, folder: Path) -> Iterator[Path]:
    """A temporary folder with the payload of a bundle, to be signed; then it is renamed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as scratch:
        work = Path(scratch) / folder.name
        files = {name: store.read_payload(bundle, name) for name in store.payload_names(bundle)}
        refuse_unsafe(files, where=bundle)
        for name, content in files.items():
            write_atomic(work / name, content)
        yield work
        work.rename(folder)


def _check_against_record(store: Store, bundle: Ref, verified: signing.VerifiedFolder) -> None:
    """The signed folder must have exactly the files of the bundle's record."""
    if store.payload_digests(bundle) != verified.files:
        raise VerificationError(
            "signed folder differs from the bundle's record",
            where=verified.folder,
            reason=Refusal.FILE_CHANGED,
            hint="Move the folder away and release again",
        )

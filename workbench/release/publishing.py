"""Releases: from a bundle and its gate report to a signed folder and a `Release` record."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from workbench.core import digest
from workbench.core.errors import ParameterError, RecordError, VerificationError
from workbench.core.names import check_name
from workbench.core.workspace import Workspace
from workbench.records.base import GateReport, Ref, Verdict, digest_of, make_ref
from workbench.records.model_types import ExportBundle, Release
from workbench.records.store import Store
from workbench.release import signing

__all__ = ["publish_release", "verify_release"]

_MAX_NAME_BYTES = 64


@dataclass(frozen=True)
class PublishedRelease:
    """A release.

    Attributes:
        ref: Reference of its record.
        folder: The signed folder.
        promoted: Whether it may become champion.
    """

    ref: Ref
    folder: Path
    promoted: bool
    verified: signing.VerifiedFolder


def may_promote(report: GateReport) -> bool:
    """Whether a model may replace the champion: all required gates passed, at least one of them.

    Args:
        report: Gate report of the model. INSUFFICIENT EVIDENCE does not promote.
    """
    required = [gate for gate in report.gates if gate.required]
    return (
        report.verdict is Verdict.PASS
        and bool(required)
        and all(gate.verdict is Verdict.PASS for gate in required)
    )


def publish_release(store: Store, bundle: Ref, gates: Ref, model: str) -> PublishedRelease:
    """Write and sign ``releases/MODEL/DIGEST``; a repeated call gives the same release.

    Candidates that failed the gates are released too, see `PublishedRelease.promoted`.

    Args:
        store: With the records.
        bundle: Reference of the bundle.
        gates: Reference of the gate report on this bundle.
        model: Name of the model: lower-case letters, digits and ``._-``.

    Raises:
        ParameterError: The name is invalid, or the report is about another bundle.
        VerificationError: The folder of an earlier release of this bundle was changed.
    """
    check_name(model, "model name", lower_case=True, max_bytes=_MAX_NAME_BYTES)
    store.get(bundle, ExportBundle)
    report = store.get(gates, GateReport)
    if report.candidate != bundle:
        raise ParameterError(
            f"gate report is about {report.candidate}, not about this bundle",
            where=bundle,
            hint="Run validate on this bundle first",
        )
    key = signing.signing_key(store.workspace)
    folder = store.workspace.release_folder(model, digest_of(bundle))
    if not folder.exists():
        _assemble_folder(store, bundle, folder, key)
    verified = signing.verify_folder(folder, key.public)
    _check_against_record(store, bundle, verified)
    record = Release(
        model=model,
        bundle=bundle,
        gates=gates,
        verdict=report.verdict,
        promoted=may_promote(report),
        key=key.fingerprint,
        signature=verified.signature,
    )
    return PublishedRelease(store.put(record), folder, record.promoted, verified)


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
    ref = _find_release(store, name)
    record = store.get(ref, Release)
    folder = workspace.release_folder(record.model, digest_of(record.bundle))
    verified = signing.verify_folder(folder, key or signing.public_key(workspace))
    _check_against_record(store, record.bundle, verified)
    if (verified.key, verified.signature) != (record.key, record.signature):
        raise VerificationError("folder was signed again after the release", where=folder)
    return verified


def _find_release(store: Store, name: str) -> Ref:
    prefix = name.removeprefix(f"{Release.KIND}/")
    matches = [ref for ref in store.refs(Release.KIND) if digest_of(ref).startswith(prefix)]
    if len(matches) != 1 or not prefix:
        count = len(matches) or "no"
        raise RecordError(
            f"{count} releases match {name!r}", where=store.root, hint="Give more digits, or a path"
        )
    return make_ref(Release.KIND, digest_of(matches[0]))


def _assemble_folder(store: Store, bundle: Ref, folder: Path, key: signing.SigningKey) -> None:
    """Copy and sign the payload in a temporary folder, then rename it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as scratch:
        work = Path(scratch) / folder.name  # the signed statement has the name
        for name in store.payload_names(bundle):
            target = work / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(store.payload(bundle, name), target)
        signing.sign_folder(work, key)
        try:
            work.rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another process released the same bundle
                raise


def _check_against_record(store: Store, bundle: Ref, verified: signing.VerifiedFolder) -> None:
    """The signed folder must have exactly the files of the bundle's record."""
    expected = {
        name: digest.of_file(store.payload(bundle, name)) for name in store.payload_names(bundle)
    }
    if expected != verified.files:
        raise VerificationError(
            "signed folder differs from the bundle's record",
            where=verified.folder,
            hint="Move the folder away and release again",
        )

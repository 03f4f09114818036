"""Publishing: from a bundle record and its gate report to a signed folder and a release record."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from workbench.core import digest
from workbench.core.errors import ParameterError, RecordError, VerificationError
from workbench.core.workspace import Workspace
from workbench.records.base import GateReport, Ref, Verdict, digest_of, make_ref
from workbench.records.model_types import ExportBundle, Release
from workbench.records.store import Store
from workbench.release import signing

_MODEL_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,63}$")


@dataclass(frozen=True)
class PublishedRelease:
    """A release: its record, the signed folder, and whether it may become champion."""

    ref: Ref
    folder: Path
    promoted: bool
    verified: signing.VerifiedFolder


def may_promote(report: GateReport) -> bool:
    """Whether a model with this report may replace the champion.

    Only evidence promotes: every required gate has to pass, at least one has to be required,
    and the report's own verdict has to say the same. Too little evidence refuses as a failure does.
    """
    required = [gate for gate in report.gates if gate.required]
    return (
        report.verdict is Verdict.PASS
        and bool(required)
        and all(gate.verdict is Verdict.PASS for gate in required)
    )


def publish_release(store: Store, bundle: Ref, gates: Ref, model: str) -> PublishedRelease:
    """Assemble and sign ``releases/MODEL/DIGEST`` from a bundle record; twice gives the same.

    Every judged candidate is released, passed or not: `Published.promoted` tells which it was.

    Args:
        gates: The report on this very bundle.
        model: Name to release under: lower-case letters, digits and ``._-``.

    Raises:
        ParameterError: The name cannot be used, or the report is about another bundle.
        VerificationError: A folder from an earlier release of this bundle was changed.
    """
    if not _MODEL_NAME.match(model):
        raise ParameterError(
            f"{model!r} cannot name a model", hint="Use lower-case letters, digits and . _ -"
        )
    store.get(bundle, ExportBundle)
    report = store.get(gates, GateReport)
    if report.candidate != bundle:
        raise ParameterError(
            f"the gates judged {report.candidate}, not this bundle",
            where=bundle,
            hint="Run validate on the bundle that is to be released",
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


def verify_release(place: Workspace, name: str, key: Path | None = None) -> signing.VerifiedFolder:
    """Check the folder of a release record, ``release/PREFIX``, against record and signature.

    Raises:
        RecordError: No release, or more than one, has a digest that starts so.
        VerificationError: The folder does not hold, or is not the one the record is about.
    """
    store = Store(place)
    ref = _find_release(store, name)
    record = store.get(ref, Release)
    folder = place.release_folder(record.model, digest_of(record.bundle))
    verified = signing.verify_folder(folder, key or signing.public_key(place))
    _check_against_record(store, record.bundle, verified)
    if (verified.key, verified.signature) != (record.key, record.signature):
        raise VerificationError("the folder was signed again after the release", where=folder)
    return verified


def _find_release(store: Store, name: str) -> Ref:
    prefix = name.removeprefix(f"{Release.KIND}/")
    found = [ref for ref in store.refs(Release.KIND) if digest_of(ref).startswith(prefix)]
    if len(found) != 1 or not prefix:
        count = "no" if not found else f"{len(found)}"
        raise RecordError(
            f"{count} releases match {name!r}", where=store.root, hint="Give more digits, or a path"
        )
    return make_ref(Release.KIND, digest_of(found[0]))


def _assemble_folder(store: Store, bundle: Ref, folder: Path, key: signing.SigningKey) -> None:
    """Copy the payload, sign it, and only then give the folder its name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as elsewhere:
        work = Path(elsewhere) / folder.name  # the name goes into the signed statement
        for name in store.payload_names(bundle):
            target = work / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(store.payload(bundle, name), target)
        signing.sign_folder(work, key)
        try:
            work.rename(folder)
        except OSError:
            if not folder.exists():  # else another process released the same bundle meanwhile
                raise


def _check_against_record(store: Store, bundle: Ref, verified: signing.VerifiedFolder) -> None:
    """A folder that an earlier signature vouches for must still be this bundle's files."""
    expected = {
        name: digest.of_file(store.payload(bundle, name)) for name in store.payload_names(bundle)
    }
    if expected != verified.files:
        raise VerificationError(
            "the signed folder does not hold the files of the bundle's record",
            where=verified.folder,
            hint="Move the folder away and release again",
        )

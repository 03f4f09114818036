"""From a bundle record and its gate report to a signed folder and a `Release` record."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from workbench import digest
from workbench.errors import ParameterError, RecordError, VerificationError
from workbench.records.base import Ref, digest_of, make_ref
from workbench.records.store import Store
from workbench.records.types import ExportBundle, GateReport, Release, Verdict
from workbench.release import keys, signing
from workbench.workspace import Workspace

_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,63}$")


@dataclass(frozen=True)
class Published:
    """A release: its record, the signed folder, and whether it may become champion."""

    ref: Ref
    folder: Path
    promoted: bool
    verified: signing.Verified


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


def publish(store: Store, bundle: Ref, gates: Ref, model: str) -> Published:
    """Assemble and sign ``releases/MODEL/DIGEST`` from a bundle record; twice gives the same.

    Every judged candidate is released, passed or not: `Published.promoted` tells which it was.

    Args:
        gates: The report on this very bundle.
        model: Name to release under: lower-case letters, digits and ``._-``.

    Raises:
        ParameterError: The name cannot be used, or the report is about another bundle.
        VerificationError: A folder from an earlier release of this bundle was changed.
    """
    if not _NAME.match(model):
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
    key = keys.signing_key(store.workspace)
    folder = store.workspace.release_folder(model, digest_of(bundle))
    if not folder.exists():
        _assemble(store, bundle, folder, key)
    verified = signing.verify(folder, key.public)
    _same_as_record(store, bundle, verified)
    record = Release(
        model=model,
        bundle=bundle,
        gates=gates,
        verdict=report.verdict,
        promoted=may_promote(report),
        key=key.fingerprint,
        signature=verified.signature,
    )
    return Published(store.put(record), folder, record.promoted, verified)


def verify_release(place: Workspace, name: str, key: Path | None = None) -> signing.Verified:
    """Check the folder of a release record, ``release/PREFIX``, against record and signature.

    Raises:
        RecordError: No release, or more than one, has a digest that starts so.
        VerificationError: The folder does not hold, or is not the one the record is about.
    """
    store = Store(place)
    ref = _find(store, name)
    record = store.get(ref, Release)
    folder = place.release_folder(record.model, digest_of(record.bundle))
    verified = signing.verify(folder, key or keys.public_key(place))
    _same_as_record(store, record.bundle, verified)
    if (verified.key, verified.signature) != (record.key, record.signature):
        raise VerificationError("the folder was signed again after the release", where=folder)
    return verified


def _find(store: Store, name: str) -> Ref:
    prefix = name.removeprefix(f"{Release.KIND}/")
    found = [ref for ref in store.refs(Release.KIND) if digest_of(ref).startswith(prefix)]
    if len(found) != 1 or not prefix:
        count = "no" if not found else f"{len(found)}"
        raise RecordError(
            f"{count} releases match {name!r}", where=store.root, hint="Give more digits, or a path"
        )
    return make_ref(Release.KIND, digest_of(found[0]))


def _assemble(store: Store, bundle: Ref, folder: Path, key: keys.SigningKey) -> None:
    """Copy the payload, sign it, and only then give the folder its name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as elsewhere:
        work = Path(elsewhere) / folder.name  # the name goes into the signed statement
        for name in store.payload_names(bundle):
            target = work / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(store.payload(bundle, name), target)
        signing.sign(work, key)
        try:
            work.rename(folder)
        except OSError:
            if not folder.exists():  # else another process released the same bundle meanwhile
                raise


def _same_as_record(store: Store, bundle: Ref, verified: signing.Verified) -> None:
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

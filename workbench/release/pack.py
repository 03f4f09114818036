"""The audit pack: everything about one release in one file that is verified offline, years later.

The pack has the release with its claims, every record of its lineage, the audit log, the keys, a
table of clauses with the files that support them, a page to read, and its own verifier. Images,
weights before the export and labels are not in it: their digests are.
"""

from __future__ import annotations

import contextlib
import html
import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Final, Literal

import yaml

from workbench.audit import log as audit
from workbench.core import digest
from workbench.core.errors import ParameterError, VerificationError
from workbench.core.keyring import export_keys, public_key, signing_key
from workbench.core.names import check_person
from workbench.core.signatures import key_fingerprint, make_envelope
from workbench.core.types import Json
from workbench.core.workspace import Workspace, write_atomic
from workbench.detection.bundles import SIGNATURE_FILE
from workbench.records.base import FrozenModel, GateReport, Ref, kind_of, refs_in
from workbench.records.claims import ENVELOPE_FILE, STATEMENT_TYPE, SignedClaim, read_claims
from workbench.records.model_types import Claim, Release, Rollback, StepRun
from workbench.records.references import resolve_reference
from workbench.records.releases import SIGNATURE, registered_releases
from workbench.records.store import Store
from workbench.records.types import LabelSet
from workbench.release import pack_verifier
from workbench.release.evidence import Evidence, gather
from workbench.release.hazards import JudgedGate, check_hazards, read_hazards
from workbench.release.publishing import verify_release

__all__ = ()

VERIFIER_FILE = "verify.py"
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # equal content gives equal bytes

_PAYLOADS: Final = {GateReport.KIND: ("metrics.json",), Claim.KIND: (ENVELOPE_FILE,)}
"""What of a record's payload goes into the pack."""

EVIDENCE: Final[dict[str, tuple[str, ...]]] = {
    "release": ("records/release/", "pack.json"),
    "bundle": ("bundle/",),
    "gate-report": ("records/gates/",),
    "model-card": ("README.md",),
    "sbom": ("sbom.json",),
    "provenance": ("claims/provenance.json",),
    "runs": ("records/run/",),
    "environment": ("records/environment/",),
    "datasets": ("records/dataset/",),
    "labels": ("records/label/",),
    "agreement": ("records/agreement/",),
    "inspection": ("records/inspection/",),
    "rollbacks": ("records/rollback/",),
    "field-report": ("claims/field-report.json",),
    "waiver": ("claims/waiver.json",),
    "log": ("audit/log.jsonl",),
    "keys": ("keys/keyring.json",),
}
"""Names of evidence in clauses.yaml, and the files of the pack that they stand for."""


class Clause(FrozenModel):
    """A clause of a regime, and what supports it.

    Attributes:
        confidence: V read in its text, S from a secondary source, R recalled.
        open: What a pack has nothing for.
    """

    regime: str
    clause: str
    about: str
    confidence: Literal["V", "S", "R"]
    evidence: tuple[str, ...]
    open: str = ""


@dataclass(frozen=True)
class WrittenPack:
    """A pack that was written and verified."""

    path: Path
    release: Ref
    model: str
    version: int | None
    files: int
    sha256: str
    notes: tuple[str, ...]


def write_pack(store: Store, model: str, path: Path, *, by: str | None = None) -> WrittenPack:
    """Write the audit pack of a release, and verify it as its reader will.

    Args:
        model: ``NAME`` for its champion, or its candidate where there is none; or any reference to
            a release.
        path: Where to write it; replaced if it exists.
        by: Who writes it; the account that runs the process by default.

    Raises:
        RecordError: There is no such release.
        VerificationError: Something about it does not verify; no pack is written.
    """
    ref = _release_of(store, model)
    release = store.get(ref, Release)
    verified = verify_release(store.workspace, ref)
    claims, refused = read_claims(store, ref)
    if refused:
        raise VerificationError(next(iter(refused.values())), where=ref)
    by = check_person(by, "name of who writes the pack") if by else None
    entry = audit.append(
        store.workspace, "packed", by=by, subjects=(ref,), model=release.model, file=path.name
    )
    evidence = gather(store, release.bundle, release.gates)
    records = _records(store, ref, release, evidence, claims)
    files = _record_files(store, records)
    files |= {f"bundle/{name}": content for name, content in verified.contents.items()}
    files[f"bundle/{SIGNATURE_FILE}"] = (verified.folder / SIGNATURE_FILE).read_bytes()
    files |= {f"keys/{name}": content for name, content in export_keys(store.workspace).items()}
    files |= {f"audit/{name}": content for name, content in audit.export(store.workspace).items()}
    said = {claim.record.type: claim.predicate for claim in claims}
    files |= {f"claims/{kind}.json": _json(predicate) for kind, predicate in said.items()}
    files["README.md"] = str(said["model-card"]["text"]).encode()
    files["sbom.json"] = _json(said["sbom"])
    files[VERIFIER_FILE] = (
        resources.files("workbench.release").joinpath("pack_verifier.py").read_bytes()
    )
    rows = _supported(read_clauses()[0], files)
    files["clauses.json"] = _json({"note": read_clauses()[1], "clauses": rows})
    manifest: Json = {
        "format": pack_verifier.FORMAT,
        "version": pack_verifier.VERSIONS[-1],
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": entry.by,
        "release": ref,
        "model": release.model,
        "model_version": release.version,
        "verdict": release.verdict.value,
        "promoted": release.promoted,
        "bundle_files": sorted(verified.contents),
    }
    files["index.html"] = _page(manifest, evidence, claims, rows, store).encode()
    manifest["files"] = {name: digest.of_bytes(files[name]) for name in sorted(files)}
    files["pack.json"] = _json(manifest)
    files["pack.sig"] = _signature(store, files["pack.json"])
    content = _zip(files)
    root = public_key(store.workspace, "root").read_bytes()
    report = pack_verifier.verify(content, root)
    if report.findings:
        code, text = report.findings[0]
        raise VerificationError(text, where=ref, reason=code)
    write_atomic(path, content)
    return WrittenPack(
        path,
        ref,
        release.model,
        release.version,
        len(files),
        digest.of_bytes(content),
        tuple(report.notes),
    )


def verify_pack(workspace: Workspace, path: Path, key: Path | None = None) -> pack_verifier.Report:
    """Verify a pack; one of this workspace is also compared with what happened since.

    Args:
        key: PEM of the trusted public key; by default the root key of the workspace, if it has one.
    """
    own = None
    with contextlib.suppress(VerificationError):
        own = public_key(workspace, "root")
    trusted = key or own
    report = pack_verifier.verify(path, trusted.read_bytes() if trusted else None)
    if own is not None and report.summary.get("root") == key_fingerprint(own):
        _compare_with_now(workspace, path, report)
    return report


def _compare_with_now(workspace: Workspace, path: Path, report: pack_verifier.Report) -> None:
    """An old pack is whole, too: it must not pass for the present state."""
    release = report.summary["release"]
    with zipfile.ZipFile(path) as archive:
        signed = archive.read("audit/log.jsonl").count(b"\n")
    later = [one for one in audit.read_log(workspace) if one.number > signed]
    for entry in later:
        if entry.event == "rolled-back" and release in entry.subjects[1:2]:
            report.add("pack-stale", f"the release was withdrawn on {entry.at} by {entry.by}")
        if entry.event == "key-revoked" and entry.detail.get("key") == report.summary["signer"]:
            report.add("key-revoked", f"the key of the pack was revoked on {entry.at}")
        if entry.event == "released" and entry.detail.get("model") == report.summary["model"]:
            version = entry.detail.get("version")
            report.notes.append(f"version {version} of the model was released on {entry.at}")


def read_clauses() -> tuple[tuple[Clause, ...], str]:
    """The clauses of clauses.yaml, and its note."""
    text = resources.files("workbench.release").joinpath("clauses.yaml").read_text()
    body = yaml.safe_load(text)
    clauses = tuple(Clause.model_validate(row) for row in body["clauses"])
    for clause in clauses:
        if unknown := set(clause.evidence) - EVIDENCE.keys():
            raise ParameterError(f"unknown evidence {', '.join(unknown)}", where=clause.clause)
    return clauses, str(body["note"]).strip()


def _release_of(store: Store, model: str) -> Ref:
    if "/" in model or ":" in model:
        ref = resolve_reference(store.workspace, model)
        if kind_of(ref) != Release.KIND:
            raise ParameterError(f"expected a release, not a {kind_of(ref)}", where=ref)
        return ref
    found = registered_releases(store.workspace, model)
    found.require_any()
    aliases = found.aliases
    alias = "champion" if "champion" in aliases else "candidate"
    return (
        aliases[alias].ref
        if aliases
        else resolve_reference(store.workspace, f"models:/{model}@candidate")
    )


def _records(
    store: Store, ref: Ref, release: Release, evidence: Evidence, claims: list[SignedClaim]
) -> dict[Ref, None]:
    """The release, its claims and lineage, the step that released it, the model's rollbacks."""
    records = dict.fromkeys([ref, *evidence.records, *(claim.ref for claim in claims)])
    for run in store.refs(StepRun.KIND):
        made = store.get(run, StepRun)
        if ref in made.outputs.values():
            known = [one for one in refs_in(made.model_dump(mode="json")) if store.exists(one)]
            records |= dict.fromkeys([run, *known])
    for rollback in store.refs(Rollback.KIND):
        if store.get(rollback, Rollback).model == release.model:
            records[rollback] = None
    return records


def _record_files(store: Store, records: Iterable[Ref]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for ref in records:
        kind = kind_of(ref)
        files[f"records/{ref}/record.json"] = store.content(ref)
        for name in set(_PAYLOADS.get(kind, ())) & set(store.payload_names(ref)):
            files[f"records/{ref}/payload/{name}"] = store.read_payload(ref, name)
        signature = store.side(ref, SIGNATURE) if kind in {LabelSet.KIND, Rollback.KIND} else None
        if signature is not None:
            files[f"signatures/{ref}.json"] = _json(signature)
    return files


def _supported(clauses: Iterable[Clause], files: Mapping[str, bytes]) -> list[Json]:
    """The clauses, with the files of this pack that support each, and what it lacks."""
    rows = []
    for clause in clauses:
        found = {
            name: sorted(file for file in files if file.startswith(EVIDENCE[name]))
            for name in clause.evidence
        }
        rows.append(
            {
                **clause.model_dump(exclude={"evidence"}),
                "files": {name: paths for name, paths in found.items() if paths},
                "absent": [name for name, paths in found.items() if not paths],
            }
        )
    return rows


def _signature(store: Store, manifest: bytes) -> bytes:
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": "pack.json", "digest": {"sha256": digest.of_bytes(manifest)}}],
        "predicateType": pack_verifier.PACK_PREDICATE,
        "predicate": {},
    }
    return make_envelope(signing_key(store.workspace), statement)


def _zip(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files, key=lambda one: (one != "index.html", one)):
            entry = zipfile.ZipInfo(name, _ZIP_TIME)
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, files[name])
    return stream.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode()


# The page.

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1f24; background: #fff }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem;
  border-bottom: 1px solid #d5dae0 }
code { font-size: .85em; overflow-wrap: anywhere }
.PASS { color: #0a6b2d } .FAIL { color: #a11 } .open { color: #8a5300 }
"""


def _page(
    manifest: Json,
    evidence: Evidence,
    claims: Iterable[SignedClaim],
    rows: Iterable[Json],
    store: Store,
) -> str:
    report = evidence.report
    title = f"{manifest['model']} version {manifest['model_version']}"
    simulated = "<p><strong>Judged on simulated drives: no figure is about real roads.</strong></p>"
    gates = [
        (
            gate.name,
            gate.slice,
            gate.verdict.value,
            _number(gate.value),
            _ends(gate.low, gate.high),
            _number(gate.bound),
            f"{gate.n} {gate.unit}",
            gate.why,
        )
        for gate in report.gates
    ]
    events = [
        (entry.number, entry.at, entry.event, entry.by, _plain(entry.detail))
        for entry in audit.read_log(store.workspace)
        if {manifest["release"], *evidence.records} & set(entry.subjects)
    ]
    sections: list[tuple[str, tuple[str, ...], Sequence[tuple[object, ...]]]] = [
        (
            "Release",
            ("", ""),
            [
                ("release", manifest["release"]),
                ("verdict of the gates", manifest["verdict"]),
                ("may be champion", "yes" if manifest["promoted"] else "no"),
                ("judged on", report.dataset),
                ("compared with", report.reference or "nothing"),
                ("pack of", f"{manifest['made_at']} by {manifest['by']}"),
                ("not in the workspace any more", ", ".join(evidence.missing) or "nothing"),
            ],
        ),
        ("Gates", ("gate", "slice", "verdict", "value", "interval", "bound", "n", "why"), gates),
        (
            "Hazards and the gates that answer them",
            ("hazard", "ASIL", "safety goal", "gates", "findings"),
            _hazard_rows(report),
        ),
        (
            "Claims, each signed on its own",
            ("claim", "by", "at", "key"),
            [
                (one.record.type, one.record.by, one.record.signed_at, one.record.key[:12])
                for one in claims
            ],
        ),
        (
            "Waivers",
            ("gate", "said", "by", "until", "reason"),
            [
                (said["gate"], said["verdict"], said["by"], said["expires"], said["reason"])
                for said in (one.predicate for one in claims if one.record.type == "waiver")
            ],
        ),
        (
            "Data and models of others",
            ("kind", "name", "licence", "digest or revision"),
            [
                (one.kind, one.name, one.licence, one.sha256 or one.revision)
                for one in evidence.parts
            ],
        ),
        (
            "Steps that made it",
            ("step", "run", "notebook"),
            [(run.step, ref, run.notebook) for ref, run in evidence.runs.items()],
        ),
        ("Who did what", ("entry", "time", "event", "who", "detail"), events),
    ]
    body = "\n".join(_table(*section) for section in sections)
    clauses = "\n".join(_clause_row(row) for row in rows)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{_e(title)}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>{_STYLE}</style></head><body>
<h1>{_e(title)}</h1>
{simulated if report.simulated else ""}
<p>Verify before you read on: <code>python {VERIFIER_FILE} PACK.zip --key SIGNER.pub.pem</code>,
with the public key from the signer, not from this pack. <a href="README.md">Model card</a>,
<a href="sbom.json">bill of materials</a>.</p>
{body}
<h2>Clauses that this pack supports</h2>
<p>A pack supports a clause; it does not say that anything complies. {_e(read_clauses()[1])}
Confidence: V read in the text, S from a secondary source, R recalled.</p>
<table><thead><tr><th>regime</th><th>clause</th><th>about</th><th>confidence</th><th>files</th>
<th>lacking</th></tr></thead><tbody>
{clauses}
</tbody></table></body></html>
"""


def _hazard_rows(report: GateReport) -> list[tuple[object, ...]]:
    """Each hazard with the verdicts of its gates, and what the table and the gates disagree on."""
    hazards = read_hazards()
    verdicts = {gate.name: gate.verdict.value for gate in report.gates}
    gates = [
        JudgedGate(gate.name, gate.required, gate.slice.partition(",")[0]) for gate in report.gates
    ]
    findings = check_hazards(hazards, gates)
    rows: list[tuple[object, ...]] = [
        (
            f"{one.id} {one.hazard}",
            one.asil,
            one.goal,
            ", ".join(f"{name}: {verdicts.get(name, 'not judged')}" for name in one.gates)
            or "none",
            "; ".join(found.text for found in findings if found.subject == one.id) or "-",
        )
        for one in hazards
    ]
    lonely = [found.subject for found in findings if found.kind == "gate-without-goal"]
    if lonely:
        rows.append(("-", "-", "no goal", ", ".join(lonely), "gates without a goal"))
    return rows


def _table(title: str, header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    head = "".join(f"<th>{_e(name)}</th>" for name in header)
    rows = list(rows)
    if not rows:
        return f"<h2>{_e(title)}</h2><p>none</p>"
    body = "\n".join(
        "<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows
    )
    return f"<h2>{_e(title)}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    text = str(value)
    if text in {"PASS", "FAIL", "INSUFFICIENT EVIDENCE"}:
        return f'<strong class="{text.split(maxsplit=1)[0]}">{text}</strong>'
    kind, _, rest = text.partition("/")
    if len(rest) == 64 and kind.isalpha():
        return f'<a href="records/{_e(text)}/record.json"><code>{_e(kind)}/{rest[:12]}</code></a>'
    return _e(text)


def _clause_row(row: Json) -> str:
    links = ", ".join(
        f'<a href="{_e(paths[0])}">{_e(name)}</a>' + (f" ({len(paths)})" if len(paths) > 1 else "")
        for name, paths in row["files"].items()
    )
    lacking = ", ".join([*row["absent"], *([row["open"]] if row["open"] else [])])
    cells = [_e(row[name]) for name in ("regime", "clause", "about", "confidence")]
    cells += [links or "-", f'<span class="open">{_e(lacking)}</span>']
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _ends(low: float | None, high: float | None) -> str:
    return f"[{'…' if low is None else f'{low:.4g}'}, {'…' if high is None else f'{high:.4g}'}]"


def _plain(detail: Json) -> str:
    return ", ".join(f"{name}: {value}" for name, value in detail.items())


def _e(value: object) -> str:
    return html.escape(str(value))

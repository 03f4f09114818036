"""Verify an audit pack, offline: a copy of this file is in every pack, as ``verify.py``.

    python verify.py PACK.zip --key SIGNER.pub.pem

Needs Python 3.11 and the package ``cryptography``, nothing else, so that it still runs in years.
Nothing is unpacked and nothing of the pack is run. Get the public key by another way than the pack:
without ``--key`` the pack is only compared with itself.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import stat
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

FORMAT, VERSIONS = "workbench audit pack", (1,)
MAX_BYTES = 8 * 2**30
MAX_FILES = 100_000
MAX_RATIO = 1000  # of unpacked to packed bytes: a small file must not fill the memory

_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PACK_PREDICATE = "urn:workbench:audit-pack:1"
_CLAIMS = {
    "gate-report": ("https://in-toto.io/attestation/test-result/v0.1", "release"),
    "model-card": ("https://huggingface.co/docs/hub/model-cards", "release"),
    "sbom": ("https://cyclonedx.org/bom", "release"),
    "provenance": ("https://slsa.dev/provenance/v1", "release"),
    "waiver": ("urn:workbench:waiver:1", "release"),
    "field-report": ("urn:workbench:field-report:1", "rollout"),
}
_SIDE_SIGNATURES = {"label": ("label set", "labels"), "rollback": ("rollback", "release")}
_REQUIRED_CLAIMS = ("gate-report", "model-card", "sbom", "provenance")
_PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".npy", ".npz")

Json = dict[str, Any]


@dataclass
class Report:
    """What was found.

    Attributes:
        findings: Code and sentence of each problem; none if the pack is whole.
        notes: What a reader should know.
        summary: Model, version, release, verdict and signer.
    """

    findings: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    summary: Json = field(default_factory=dict)

    def add(self, code: str, text: str) -> None:
        self.findings.append((code, text))


class _Refused(Exception):
    """A problem after which nothing else can be said."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def verify(
    pack: Path | bytes, key: bytes | None = None, *, max_age_days: float | None = None
) -> Report:
    """Verify every byte and every signature of a pack.

    Args:
        pack: The file, or its bytes.
        key: PEM of the public key that is trusted: the signer's root key or release key.
        max_age_days: Refuse a pack that is older.
    """
    report = Report()
    try:
        files = _read(pack)
        manifest = _manifest(files)
        _check_files(files, manifest, report)
        keys = _Keys(files, key, report)
        _check_pack_signature(files, manifest, keys, report, max_age_days)
        records = _records(files, report)
        _check_release(files, manifest, records, keys, report)
        _check_claims(files, manifest, records, keys, report)
        _check_side_signatures(files, records, keys, report)
        _check_log(files, manifest, keys, report)
    except _Refused as error:
        report.add(error.code, str(error))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        report.add("record-changed", f"pack cannot be read: {type(error).__name__}: {error}")
    return report


# The archive.


def _read(pack: Path | bytes) -> dict[str, bytes]:
    """The bytes of every file by name; nothing is written to the disk."""
    source = io.BytesIO(pack) if isinstance(pack, bytes) else pack
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(set(names)) != len(names):
                raise _Refused("unsafe-archive", "two files of the pack have one name")
            if len(names) > MAX_FILES or sum(one.file_size for one in entries) > MAX_BYTES:
                raise _Refused("unsafe-archive", "the pack is too large")
            for entry in entries:
                _check_entry(entry)
            return {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError) as error:
        raise _Refused("unsafe-archive", f"not a readable pack: {error}") from error


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    parts = name.split("/")
    odd = name.startswith("/") or "\\" in name or ":" in name or not name.isprintable()
    if odd or any(part in {"", ".", ".."} for part in parts):
        raise _Refused("unsafe-archive", f"a file of the pack would leave its folder: {name!r}")
    mode = entry.external_attr >> 16
    if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
        raise _Refused("unsafe-archive", f"not a regular file: {name!r}")
    if entry.flag_bits & 1:
        raise _Refused("unsafe-archive", f"encrypted: {name!r}")
    if entry.file_size > MAX_RATIO * max(entry.compress_size, 1024):
        raise _Refused("unsafe-archive", f"unpacks to far too many bytes: {name!r}")


def _manifest(files: Mapping[str, bytes]) -> Json:
    if "pack.json" not in files:
        raise _Refused("pack-version", "not an audit pack: pack.json is missing")
    manifest: Json = json.loads(files["pack.json"])
    if manifest.get("format") != FORMAT or manifest.get("version") not in VERSIONS:
        found = f"{manifest.get('format')!r} version {manifest.get('version')!r}"
        raise _Refused("pack-version", f"unknown format {found}; this verifier reads {VERSIONS}")
    return manifest


def _check_files(files: Mapping[str, bytes], manifest: Json, report: Report) -> None:
    listed = manifest["files"]
    present = files.keys() - {"pack.json", "pack.sig"}
    for name in sorted(listed.keys() - present):
        report.add("file-missing", f"missing: {name}")
    for name in sorted(present - listed.keys()):
        report.add("file-extra", f"extra: {name}")
    for name in sorted(present & listed.keys()):
        if _sha256(files[name]) != listed[name]:
            report.add("file-changed", f"changed: {name}")


# Keys and signatures.


class _Keys:
    """The keys of the pack: only those count that the trusted one vouches for."""

    def __init__(self, files: Mapping[str, bytes], trusted: bytes | None, report: Report) -> None:
        self.ring: Json = json.loads(files["keys/keyring.json"])
        signature = self.ring.pop("signature")
        self.entries: list[Json] = self.ring["keys"]
        self._public: dict[str, Any] = {}
        for name, content in files.items():
            if name.startswith("keys/") and name.endswith(".pub.pem"):
                found = _load_public(content)
                self._public[found[0]] = found[1]
        # The one that signed the list holds, or held, the root role: what it lists, it vouches for.
        root = str(signature["key"])
        roots = [one["key"] for one in self.entries if one["role"] == "root" and not one["revoked"]]
        text = _canonical(self.ring)
        if root not in roots or not self._is_reference("keyring", _sha256(text), signature):
            report.add("keyring-changed", "the list of keys is not signed by its root key")
        self.signer = root
        if trusted is None:
            report.notes.append(
                "no --key given: the pack agrees with itself; compare the root key's fingerprint "
                f"{root} with the signer's by another way"
            )
            return
        fingerprint, _ = _load_public(trusted)
        known = [one for one in self.entries if one["key"] == fingerprint]
        if not any(one["role"] in {"root", "release"} for one in known):
            report.add("wrong-key", f"the pack is not signed by {fingerprint[:12]}…")
        elif any(one["revoked"] for one in known):
            report.add("key-revoked", f"the trusted key {fingerprint[:12]}… was revoked")
        elif fingerprint != root:
            self.required_release_key = fingerprint
            report.notes.append("trusted by its release key; the list of keys by itself")

    required_release_key: str | None = None

    def check(self, fingerprint: str, role: str, at: str | None, what: str, report: Report) -> bool:
        """Whether a key may have signed something in this role at this time."""
        found = [one for one in self.entries if one["key"] == fingerprint and one["role"] == role]
        short = f"{fingerprint[:12]}…"
        if not found or fingerprint not in self._public:
            report.add("wrong-key", f"{what}: key {short} is not a {role} key of the signer")
            return False
        if found[0]["revoked"]:
            why = f"{found[0]['revoked']}: {found[0]['reason']}"
            report.add("key-revoked", f"{what}: key {short} was revoked on {why}")
            return False
        expires = found[0]["expires"]
        if expires and at and at > expires:
            report.add("key-expired", f"{what}: key {short} had expired on {expires}")
            return False
        return True

    def is_signed(self, fingerprint: str, data: bytes, signature: bytes) -> bool:
        """Whether a key signed some bytes: ECDSA on P-256, SHA-256, DER."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        if fingerprint not in self._public:
            return False
        try:
            self._public[fingerprint].verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, ValueError):
            return False
        return True

    def _is_reference(self, purpose: str, ref: str, signature: Json) -> bool:
        data = f"workbench {purpose}\n{ref}\n".encode()
        content = base64.b64decode(signature["signature"])
        return self.is_signed(str(signature["key"]), data, content)

    def reference(
        self, purpose: str, ref: str, signature: Json, role: str, what: str, report: Report
    ) -> bool:
        """Check the signature of a record's reference."""
        if not self.check(str(signature["key"]), role, None, what, report):
            return False
        if not self._is_reference(purpose, ref, signature):
            report.add("signature-invalid", f"{what}: the signature is not valid")
            return False
        return True

    def envelope(self, content: bytes, what: str, report: Report) -> tuple[str, Json]:
        """Signer and statement of an envelope; the statement is empty if it is not valid."""
        body = json.loads(content)
        fingerprint = str(body["verificationMaterial"]["publicKey"]["hint"])
        envelope = body["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"])
        signature = base64.b64decode(envelope["signatures"][0]["sig"])
        kind = str(envelope["payloadType"])
        data = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
        if kind != _PAYLOAD_TYPE or not self.is_signed(fingerprint, data, signature):
            report.add("signature-invalid", f"{what}: the signature is not valid")
            return fingerprint, {}
        statement: Json = json.loads(payload)
        return fingerprint, statement


def _load_public(pem: bytes) -> tuple[str, Any]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = serialization.load_pem_public_key(pem)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _Refused("wrong-key", "public key is not a P-256 key")
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return _sha256(key.public_bytes(serialization.Encoding.PEM, form)), key


def _check_pack_signature(
    files: Mapping[str, bytes], manifest: Json, keys: _Keys, report: Report, max_age: float | None
) -> None:
    if "pack.sig" not in files:
        raise _Refused("unsigned", "the pack is not signed")
    signer, statement = keys.envelope(files["pack.sig"], "pack", report)
    if not statement:
        return
    keys.check(signer, "release", manifest["made_at"], "pack", report)
    if keys.required_release_key not in {None, signer}:
        report.add("wrong-key", f"pack is signed by {signer[:12]}…, not by the trusted key")
    expected = {"sha256": _sha256(files["pack.json"])}
    if (
        statement["predicateType"] != PACK_PREDICATE
        or statement["subject"][0]["digest"] != expected
    ):
        report.add("file-changed", "changed: pack.json")
    made = datetime.fromisoformat(manifest["made_at"])
    if max_age is not None and datetime.now(UTC) - made > timedelta(days=max_age):
        report.add("pack-stale", f"the pack is of {manifest['made_at']}, older than {max_age:g} d")
    report.summary = {
        **{name: manifest[name] for name in ("model", "model_version", "release", "made_at", "by")},
        "verdict": manifest["verdict"],
        "promoted": manifest["promoted"],
        "signer": signer,
        "root": keys.signer,
    }


# Records, release, claims.


def _records(files: Mapping[str, bytes], report: Report) -> dict[str, Json]:
    """Every record by reference: its name is its digest, and it lists those of its files."""
    records = {}
    for name, content in files.items():
        parts = name.split("/")
        if parts[0] != "records" or parts[3:] != ["record.json"]:
            continue
        ref = f"{parts[1]}/{parts[2]}"
        records[ref] = json.loads(content)
        if _sha256(content) != parts[2]:
            report.add("record-changed", f"record does not match its digest: {ref}")
        payload = f"records/{ref}/payload/"
        for file, entry in records[ref]["payload"].items():
            if payload + file in files and _sha256(files[payload + file]) != entry["sha256"]:
                report.add("record-changed", f"file does not match its record: {payload}{file}")
    return records


def _check_release(
    files: Mapping[str, bytes],
    manifest: Json,
    records: Mapping[str, Json],
    keys: _Keys,
    report: Report,
) -> None:
    record = records[manifest["release"]]
    bundle = {
        name.removeprefix("bundle/"): content
        for name, content in files.items()
        if name.startswith("bundle/") and name != "bundle/signature"
    }
    for name, content in bundle.items():
        if name.endswith(_PICKLE_SUFFIXES) or _looks_pickled(content):
            report.add("unsafe-file", f"a file of the bundle could run code: {name}")
    if "bundle/signature" not in files:
        report.add("unsigned", "the bundle is not signed")
        return
    signer, statement = keys.envelope(files["bundle/signature"], "bundle", report)
    if not statement:
        return
    said = statement["predicate"].get("workbench") or {}
    keys.check(signer, "release", said.get("signed_at"), "bundle", report)
    signed = {one["name"]: one["digest"] for one in statement["predicate"]["resources"]}
    listed = records[record["bundle"]]["payload"]
    if signed != {name: entry["sha256"] for name, entry in listed.items()}:
        report.add("other-release", "the signature is about another bundle")
    included = manifest["bundle_files"]
    for name in sorted(bundle.keys() | set(included)):
        if _sha256(bundle.get(name, b"")) != signed.get(name):
            report.add("file-changed", f"changed: bundle/{name}")
    fields = ("model", "version", "bundle", "gates", "verdict", "promoted")
    if any(said.get(name) != record.get(name) for name in fields):
        report.add("other-release", "the release's record says something else than its signature")
    if record["signature"] != _sha256(files["bundle/signature"]):
        report.add("other-release", "the bundle was signed again after the release")
    gates = records[record["gates"]]
    if gates["candidate"] != record["bundle"]:
        report.add("gates-other-bundle", "the gate report is about another bundle")
    if gates["verdict"] != record["verdict"]:
        report.add("gates-edited", "the gate report has another verdict than the release")
    stated = {name: manifest[name] for name in ("model", "verdict", "promoted")}
    if stated != {name: record[name] for name in stated}:
        report.add("other-release", "pack.json names another release")


def _looks_pickled(content: bytes) -> bool:
    """A pickle of protocol 2 or later, or PyTorch's zip around one."""
    if content[:1] == b"\x80" and content[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}:
        return True
    return content[:4] == b"PK\x03\x04" and b"data.pkl" in content


def _check_claims(
    files: Mapping[str, bytes],
    manifest: Json,
    records: Mapping[str, Json],
    keys: _Keys,
    report: Report,
) -> None:
    release = manifest["release"]
    found = set()
    for ref, record in records.items():
        if not ref.startswith("claim/"):
            continue
        kind = record["type"]
        what = f"claim {kind}"
        predicate_type, role = _CLAIMS[kind]
        content = files.get(f"records/{ref}/payload/envelope.json")
        if content is None:
            report.add("file-missing", f"{what}: its envelope is missing")
            continue
        signer, statement = keys.envelope(content, what, report)
        if not statement or not keys.check(signer, role, record["signed_at"], what, report):
            continue
        said = {"type": kind, "by": record["by"], "signed_at": record["signed_at"]}
        subjects = {one["digest"]["sha256"] for one in statement["subject"]}
        if (
            statement["_type"] != _STATEMENT_TYPE
            or statement["predicateType"] != predicate_type
            or statement["workbench"] != said
            or record["release"] != release
            or release.partition("/")[2] not in subjects
        ):
            report.add("claim-invalid", f"{what}: it is about something else")
            continue
        found.add(kind)
        _check_predicate(kind, statement["predicate"], manifest, records, files, report)
    for kind in _REQUIRED_CLAIMS:
        if kind not in found:
            report.add("claim-invalid", f"no valid claim of type {kind}")


def _check_predicate(
    kind: str,
    predicate: Json,
    manifest: Json,
    records: Mapping[str, Json],
    files: Mapping[str, bytes],
    report: Report,
) -> None:
    """What a claim says, compared with the records and the files that people read."""
    gates = records[records[manifest["release"]]["gates"]]
    if kind == "gate-report" and predicate["gates"] != gates["gates"]:
        report.add("gates-edited", "the gates are not those of the signed gate report")
    if kind == "gate-report" and predicate["dataset"] != gates["dataset"]:
        report.add("gates-other-dataset", "the gate report names another dataset")
    if kind == "model-card" and files["README.md"] != predicate["text"].encode():
        report.add("file-changed", "README.md is not the signed model card")
    if kind == "sbom" and json.loads(files["sbom.json"]) != predicate:
        report.add("file-changed", "sbom.json is not the signed bill of materials")
    if kind == "waiver":
        state = f"gate {predicate['gate']} until {predicate['expires']}, by {predicate['by']}"
        report.notes.append(f"waived: {state}: {predicate['reason']}")
        if predicate["expires"] < datetime.now(UTC).date().isoformat():
            report.add("waiver-expired", f"the waiver of {state} has expired")


def _check_side_signatures(
    files: Mapping[str, bytes], records: Mapping[str, Json], keys: _Keys, report: Report
) -> None:
    """Rollbacks and label sets, whose signatures lie beside their records."""
    for ref in records:
        kind = ref.partition("/")[0]
        if kind not in _SIDE_SIGNATURES:
            continue
        purpose, role = _SIDE_SIGNATURES[kind]
        name = f"signatures/{ref}.json"
        if name in files:
            keys.reference(purpose, ref, json.loads(files[name]), role, purpose, report)
        elif kind == "rollback":
            report.add("unsigned", f"a rollback is not signed: {ref}")
        else:
            report.notes.append(f"label set from before they were signed: {ref}")


# The audit log.


def _check_log(files: Mapping[str, bytes], manifest: Json, keys: _Keys, report: Report) -> None:
    checkpoint = json.loads(files["audit/checkpoint.json"])
    name = str(checkpoint["last"])
    keys.reference("audit checkpoint", name, checkpoint, "log", "audit log", report)
    last, _, signed = name.partition("/")
    digests = ["0" * 64]
    events = []
    for number, line in enumerate(_lines(files["audit/log.jsonl"]), start=1):
        entry = json.loads(line)
        if (entry["number"], entry["previous"]) != (number, digests[-1]):
            report.add("log-changed", f"entry {number - 1} was changed, removed or reordered")
        digests.append(_sha256(line))
        events.append(entry)
    if int(last) > len(events):
        report.add("log-truncated", f"entries {len(events) + 1} to {last} are missing")
    elif int(last) < len(events):
        report.add("log-changed", f"entries after {last} are not signed")
    elif digests[int(last)] != signed:
        report.add("log-changed", f"entry {last} is not the one that was signed")
    about = [one["event"] for one in events if manifest["release"] in one["subjects"]]
    if "released" not in about:
        report.add("log-changed", "the audit log has no entry of this release")
    if "rolled-back" in about:
        report.notes.append("the release was withdrawn, or restored by a rollback: see the log")
    versions = (one["detail"].get("keyring", 0) for one in events)
    if max(versions, default=0) > keys.ring["version"]:
        report.add("keyring-changed", "the audit log has a newer list of keys")
    report.summary["log_entries"] = len(events)


def _lines(content: bytes) -> Iterator[bytes]:
    yield from content.removesuffix(b"\n").split(b"\n") if content else ()


def _canonical(value: Json) -> bytes:
    """RFC 8785, for objects of texts and whole numbers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Print what was found; 0 only if the pack is whole."""
    parser = argparse.ArgumentParser(description="Verify an audit pack, offline.")
    parser.add_argument("pack", type=Path)
    parser.add_argument("--key", type=Path, help="public key (PEM) that you trust")
    parser.add_argument("--max-age", type=float, metavar="DAYS", help="refuse an older pack")
    options = parser.parse_args(arguments)
    try:
        import cryptography  # noqa: F401
    except ImportError:
        print("install the package `cryptography` first")
        return 2
    key = options.key.read_bytes() if options.key else None
    report = verify(options.pack, key, max_age_days=options.max_age)
    for code, text in report.findings:
        print(f"REFUSED {code}: {text}")
    for note in report.notes:
        print(f"note: {note}")
    for name, value in report.summary.items():
        print(f"{name}: {value}")
    print("refused" if report.findings else "verified")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())

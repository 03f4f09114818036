"""The audit pack: verified offline by its own verifier, and every attack on one refused by code."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.release.world import World, make_world
from workbench.audit import keys
from workbench.cli import cli
from workbench.core import digest
from workbench.core.errors import Refusal, VerificationError
from workbench.core.keyring import public_key, signing_key
from workbench.core.signatures import make_envelope
from workbench.core.types import Json
from workbench.core.workspace import Workspace
from workbench.records.claims import STATEMENT_TYPE
from workbench.records.store import Store
from workbench.release import pack, pack_verifier, publishing
from workbench.release.claims import add_claim

GOLDEN = Path(__file__).parents[1] / "golden" / "pack"
Files = dict[str, bytes]


@pytest.fixture
def world(store: Store) -> World:
    world = make_world(store)
    publishing.publish_release(store, world.bundle, world.gates, "camera")
    return world


@pytest.fixture
def written(world: World, tmp_path: Path) -> Path:
    return pack.write_pack(world.store, "camera", tmp_path / "pack.zip", by="Ann").path


def root_key(world: World) -> bytes:
    return public_key(world.store.workspace, "root").read_bytes()


def files_of(path: Path) -> Files:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(files: Files) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def signed(world: World, files: Files, **manifest: object) -> bytes:
    """The pack as somebody with the release key would sign it after a change."""
    body = {**json.loads(files["pack.json"]), **manifest}
    names = files.keys() - {"pack.json", "pack.sig"}
    body["files"] = {name: digest.of_bytes(files[name]) for name in names}
    content = json.dumps(body).encode()
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": "pack.json", "digest": {"sha256": digest.of_bytes(content)}}],
        "predicateType": pack_verifier.PACK_PREDICATE,
        "predicate": {},
    }
    signature = make_envelope(signing_key(world.store.workspace), statement)
    return zipped({**files, "pack.json": content, "pack.sig": signature})


def codes(report: pack_verifier.Report) -> set[str]:
    return {code for code, _ in report.findings}


def test_a_pack_has_the_whole_story_and_verifies(world: World, written: Path) -> None:
    report = pack_verifier.verify(written, root_key(world))
    assert not report.findings
    assert report.summary["model"] == "camera" and report.summary["promoted"] is True
    files = files_of(written)
    page = files["index.html"].decode()
    for shown in ("camera version 1", "vru-recall", "CC-BY-4.0", "EU AI Act", "UNECE R156", "Ann"):
        assert shown in page
    kinds = {name.split("/")[1] for name in files if name.startswith("records/")}
    assert kinds >= {"release", "bundle", "checkpoint", "dataset", "gates", "run", "claim"}
    clauses = json.loads(files["clauses.json"])["clauses"]
    assert {one["confidence"] for one in clauses} == {"V", "S", "R"}
    tests = next(one for one in clauses if one["clause"] == "Annex IV 2 (g)")
    assert set(tests["files"]) == {"gate-report", "log"} and not tests["absent"]
    assert not any(name.endswith("safetensors") for name in files)


def test_text_of_others_is_no_markup_on_the_page(store: Store, tmp_path: Path) -> None:
    world = make_world(store, licence="<script>alert(1)</script>")
    publishing.publish_release(store, world.bundle, world.gates, "camera")
    page = files_of(pack.write_pack(store, "camera", tmp_path / "p.zip").path)["index.html"]
    assert b"<script" not in page and b"&lt;script&gt;" in page


def only_cryptography(folder: Path) -> Path:
    """A folder with `cryptography` and what it needs, and nothing else."""
    site = Path(sysconfig.get_paths()["purelib"])
    folder.mkdir()
    for path in [site / "cryptography", site / "cffi", *site.glob("_cffi_backend*")]:
        (folder / path.name).symlink_to(path)
    return folder


def test_its_own_verifier_needs_only_cryptography(
    world: World, written: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "verify.py").write_bytes(files_of(written)["verify.py"])
    (elsewhere / "key.pem").write_bytes(root_key(world))
    shutil.copyfile(written, elsewhere / "pack.zip")

    def verify() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", "verify.py", "pack.zip", "--key", "key.pem"]
        alone = {"PYTHONPATH": str(tmp_path / "site"), "PATH": os.environ["PATH"]}
        return subprocess.run(
            command, check=False, cwd=elsewhere, env=alone, capture_output=True, text=True
        )

    assert "install the package `cryptography`" in verify().stdout
    only_cryptography(tmp_path / "site")
    done = verify()
    assert done.returncode == 0 and done.stdout.endswith("verified\n"), done.stdout + done.stderr
    files = files_of(written)
    weights = bytearray(files["bundle/int8.cpu.onnx"])
    weights[7] ^= 1
    (elsewhere / "pack.zip").write_bytes(zipped({**files, "bundle/int8.cpu.onnx": bytes(weights)}))
    refused = verify()
    assert refused.returncode == 1 and "REFUSED file-changed" in refused.stdout


def changed(files: Files, name: str, content: bytes) -> Files:
    assert name in files
    return {**files, name: content}


def without(files: Files, name: str) -> Files:
    return {other: content for other, content in files.items() if other != name}


def edited(content: bytes, **changes: object) -> bytes:
    return json.dumps({**json.loads(content), **changes}).encode()


OUTSIDER: dict[str, tuple[Callable[[Files], Files], str]] = {
    "weight": (lambda f: changed(f, "bundle/int8.cpu.onnx", b"j" * 100), "file-changed"),
    "extra file": (lambda f: {**f, "bundle/more.onnx": b"x"}, "file-extra"),
    "missing file": (lambda f: without(f, "audit/log.jsonl"), "file-missing"),
    "no signature": (lambda f: without(f, "pack.sig"), "unsigned"),
    "manifest": (
        lambda f: changed(f, "pack.json", f["pack.json"].replace(b'"camera"', b'"lidar"')),
        "file-changed",
    ),
    "version": (
        lambda f: changed(f, "pack.json", edited(f["pack.json"], version=9)),
        "pack-version",
    ),
    "escape": (lambda f: {**f, "../../etc/cron.d/x": b"x"}, "unsafe-archive"),
    "absolute": (lambda f: {**f, "/etc/passwd": b"x"}, "unsafe-archive"),
    "windows": (lambda f: {**f, "..\\x": b"x"}, "unsafe-archive"),
    "bomb": (lambda f: {**f, "bundle/zeros": b"\0" * (1 << 24)}, "file-extra"),
}


@pytest.mark.parametrize("attack", OUTSIDER)
def test_an_outsiders_change_is_refused(world: World, written: Path, attack: str) -> None:
    change, code = OUTSIDER[attack]
    report = pack_verifier.verify(zipped(change(files_of(written))), root_key(world))
    assert code in codes(report), report.findings


def test_odd_archives_are_refused(written: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        link = zipfile.ZipInfo("index.html")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive, pytest.warns(UserWarning):
        archive.writestr("pack.json", "{}")
        archive.writestr("pack.json", "{}")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pack.json", b"\0" * (1 << 24))
    (tmp_path / "half.zip").write_bytes(written.read_bytes()[:2000])
    (tmp_path / "text.zip").write_text("no archive")
    for name in ("link", "twice", "bomb", "half", "text"):
        assert codes(pack_verifier.verify(tmp_path / f"{name}.zip")) == {"unsafe-archive"}, name


def edit_record(files: Files, kind: str, **changes: object) -> Files:
    name = next(one for one in files if one.startswith(f"records/{kind}/"))
    name = name.rsplit("/", 1)[0].removesuffix("/payload") + "/record.json"
    return {**files, name: edited(files[name], **changes)}


def lower_threshold(files: Files) -> Files:
    name = next(n for n in files if n.startswith("records/gates/") and n.endswith("record.json"))
    body = json.loads(files[name])
    body["gates"][0]["bound"] = 0.01
    return {**files, name: json.dumps(body).encode()}


def cut_log(files: Files) -> Files:
    lines = files["audit/log.jsonl"].splitlines(keepends=True)
    return {**files, "audit/log.jsonl": b"".join(lines[:-1])}


def edit_log(files: Files) -> Files:
    return changed(files, "audit/log.jsonl", files["audit/log.jsonl"].replace(b"Ann", b"Eve", 1))


def edit_keys(files: Files) -> Files:
    ring = files["keys/keyring.json"].replace(b'"reason": ""', b'"reason": "x"', 1)
    return changed(files, "keys/keyring.json", ring)


INSIDER: dict[str, tuple[Callable[[Files], Files], str]] = {
    "pickle": (lambda f: {**f, "bundle/net.onnx": b"\x80\x04K\x01."}, "unsafe-file"),
    "torch archive": (
        lambda f: {**f, "bundle/net.bin": zipped({"net/data.pkl": b"\x80\x02."})},
        "unsafe-file",
    ),
    "other weights": (lambda f: changed(f, "bundle/fp32.onnx", b"g" * 400), "file-changed"),
    "unsigned bundle": (lambda f: without(f, "bundle/signature"), "unsigned"),
    "threshold": (lower_threshold, "gates-edited"),
    "edited verdict": (lambda f: edit_record(f, "gates", verdict="FAIL"), "gates-edited"),
    "other bundle judged": (
        lambda f: edit_record(f, "gates", candidate=f"bundle/{'9' * 64}"),
        "gates-other-bundle",
    ),
    "other data judged": (
        lambda f: edit_record(f, "gates", dataset=f"dataset/{'9' * 64}"),
        "gates-other-dataset",
    ),
    "release of another name": (
        lambda f: edit_record(f, "release", model="lidar"),
        "other-release",
    ),
    "card": (lambda f: changed(f, "README.md", b"# better"), "file-changed"),
    "no card": (
        lambda f: {
            name: content
            for name, content in f.items()
            if not (name.startswith("records/claim/") and b"model-card" in content)
        },
        "claim-invalid",
    ),
    "cut log": (cut_log, "log-truncated"),
    "edited log": (edit_log, "log-changed"),
    "edited keys": (edit_keys, "keyring-changed"),
}


@pytest.mark.parametrize("attack", INSIDER)
def test_with_the_release_key_the_rest_cannot_be_changed(
    world: World, written: Path, attack: str
) -> None:
    """The pack's own signature is right; what it holds was signed before."""
    change, code = INSIDER[attack]
    report = pack_verifier.verify(signed(world, change(files_of(written))), root_key(world))
    assert code in codes(report), report.findings


def test_keys_of_others_expired_and_revoked_ones_are_refused(
    world: World, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = signing_key(Workspace(tmp_path / "stranger" / ".workbench"))
    assert codes(pack_verifier.verify(written, stranger.public.read_bytes())) == {"wrong-key"}
    report = pack_verifier.verify(written)  # without a key it says what to compare
    assert not report.findings and "compare the root key's fingerprint" in report.notes[0]

    workspace = world.store.workspace
    made = keys.rotate(workspace, "release", by="Ann", days=10).key
    path = tmp_path / "second.zip"
    pack.write_pack(world.store, "camera", path)
    assert not pack_verifier.verify(path, root_key(world)).findings
    assert not pack_verifier.verify(path, public_key(workspace, signer=made).read_bytes()).findings
    late = signed(world, files_of(path), made_at="2099-01-01T00:00:00+00:00")
    assert "key-expired" in codes(pack_verifier.verify(late, root_key(world)))

    old = signing_key(workspace, "root").fingerprint
    keys.revoke(workspace, made, by="Ann", reason="laptop stolen")
    refused = pack.verify_pack(workspace, path)
    assert codes(refused) == {"key-revoked"}
    assert not pack.verify_pack(workspace, written).findings and old  # of the key before
    pack.write_pack(world.store, "camera", path)  # the release is of the key before, too
    keys.revoke(workspace, old, by="Ann", reason="safe opened")
    with pytest.raises(VerificationError) as error:
        pack.write_pack(world.store, "camera", path)
    assert error.value.reason == Refusal.KEY_REVOKED


def test_an_old_pack_is_not_taken_for_the_present(
    world: World, written: Path, tmp_path: Path
) -> None:
    workspace = world.store.workspace
    assert "pack-stale" in codes(pack_verifier.verify(written, max_age_days=-1))
    second = world.another_bundle()
    passed = world.report(candidate=second, run={"bundle": second})
    publishing.publish_release(world.store, second, passed, "camera")
    assert "version 2 of the model was released" in pack.verify_pack(workspace, written).notes[-1]
    newer = pack.write_pack(world.store, "camera", tmp_path / "2.zip").path
    publishing.roll_back(world.store, "camera", by="Kim", reason="misses cyclists")
    report = pack.verify_pack(workspace, newer)
    assert codes(report) == {"pack-stale"} and "withdrawn" in report.findings[0][1]


def test_a_waiver_counts_until_it_expires(world: World, tmp_path: Path) -> None:
    (ref,) = world.store.refs("release")
    waiver: Json = {"gate": "vru-recall", "verdict": "FAIL", "by": "Kim", "reason": "fix in v2"}
    add_claim(world.store, ref, "waiver", {**waiver, "expires": "2099-01-01"}, by="Kim")
    path = pack.write_pack(world.store, "camera", tmp_path / "p.zip").path
    report = pack_verifier.verify(path, root_key(world))
    assert not report.findings and "vru-recall until 2099-01-01, by Kim" in report.notes[0]
    add_claim(world.store, ref, "waiver", {**waiver, "expires": "2020-01-01"}, by="Kim")
    with pytest.raises(VerificationError, match="has expired") as refused:
        pack.write_pack(world.store, "camera", path)
    assert refused.value.reason == Refusal.WAIVER_EXPIRED


def test_the_commands(world: World, tmp_path: Path) -> None:
    path = tmp_path / "pack.zip"
    run = CliRunner()
    done = run.invoke(cli, ["audit", "pack", "camera", "-o", str(path), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["version"] == 1
    done = run.invoke(cli, ["verify", str(path), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["verified"] is True
    done = run.invoke(cli, ["verify", str(path), "--model", "lidar", "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["findings"][0]["reason"] == "other-release"


def test_codes_of_the_verifier_are_those_of_the_workbench() -> None:
    """The verifier imports nothing of the workbench, so its codes are texts."""
    source = Path(pack_verifier.__file__).read_text()
    used = {code for code in Refusal if f'"{code}"' in source}
    assert len(used) >= 20
    documented = (Path(__file__).parents[2] / "docs" / "how-to" / "releases.md").read_text()
    assert all(f"`{code}`" in documented for code in Refusal)


def test_a_golden_pack_stays_readable() -> None:
    """Written by an earlier version; its own verifier and today's agree."""
    for path in sorted(GOLDEN.glob("*.zip")):
        key = path.with_suffix(".pub.pem").read_bytes()
        report = pack_verifier.verify(path, key)
        assert not report.findings and report.summary["model"] == "camera", path
    assert list(GOLDEN.glob("v1.zip"))

"""Only passed gates promote; every candidate is signed; the signed files are the judged ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.release.conftest import CHECKPOINT, DATASET, FILES, METRICS, RULES, gate
from workbench.audit.log import read_log
from workbench.cli import main
from workbench.core import digest
from workbench.core.errors import ParameterError, RecordError, VerificationError
from workbench.core.workspace import Workspace
from workbench.pipeline import plan
from workbench.records import catalog, releases
from workbench.records.base import GateReport, GateResult, Ref, Verdict
from workbench.records.model_types import ExportBundle, Release, Rollback
from workbench.records.references import resolve_reference
from workbench.records.repair import check_records
from workbench.records.store import Store
from workbench.release import publishing, signing
from workbench.release.signing import signing_key

Judge = Callable[..., Ref]


def report(verdict: Verdict, *gates: GateResult) -> GateReport:
    return GateReport(
        candidate=CHECKPOINT,
        reference=None,
        dataset=DATASET,
        rules=digest.of_json(RULES),
        verdict=verdict,
        gates=gates,
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (report(Verdict.PASS, gate(Verdict.PASS)), True),
        (report(Verdict.PASS, gate(Verdict.PASS), gate(Verdict.FAIL, required=False)), True),
        (report(Verdict.FAIL, gate(Verdict.PASS), gate(Verdict.FAIL)), False),
        (report(Verdict.INSUFFICIENT, gate(Verdict.INSUFFICIENT)), False),
        # A report that contradicts its own gates, or has none that counts, promotes nothing.
        (report(Verdict.PASS, gate(Verdict.PASS), gate(Verdict.INSUFFICIENT)), False),
        (report(Verdict.FAIL, gate(Verdict.PASS)), False),
        (report(Verdict.PASS), False),
        (report(Verdict.PASS, gate(Verdict.PASS, required=False)), False),
    ],
)
def test_only_evidence_promotes(given: GateReport, expected: bool) -> None:
    assert publishing.may_promote(given) is expected


def test_release_is_the_signed_bundle(store: Store, bundle: Ref, judge: Judge) -> None:
    case = publishing.publish_release(store, bundle, judge(bundle), "front-camera")
    record = store.get(case.ref, Release)
    assert case.promoted and record.promoted
    assert record.key == signing_key(store.workspace).fingerprint
    assert record.signature == digest.of_file(case.folder / "signature")
    assert {path.name for path in case.folder.iterdir()} == {*FILES, "signature"}
    assert case.verified.files["fp32.onnx"] == digest.of_bytes(FILES["fp32.onnx"])
    assert not list(case.folder.parent.glob(".*"))


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.INSUFFICIENT])
def test_failed_candidate_is_signed_but_not_promoted(
    store: Store, bundle: Ref, judge: Judge, verdict: Verdict
) -> None:
    case = publishing.publish_release(store, bundle, judge(bundle, verdict), "front-camera")
    assert not case.promoted
    assert store.get(case.ref, Release).verdict is verdict
    assert (case.folder / "signature").is_file()


def test_publishing_twice_gives_one_release(store: Store, bundle: Ref, judge: Judge) -> None:
    first = publishing.publish_release(store, bundle, judge(bundle), "front-camera")
    second = publishing.publish_release(store, bundle, judge(bundle), "front-camera")
    assert first == second


def test_gate_report_on_another_bundle_is_rejected(store: Store, bundle: Ref, judge: Judge) -> None:
    with pytest.raises(ParameterError, match="not about this bundle"):
        publishing.publish_release(store, bundle, judge(CHECKPOINT), "front-camera")
    assert not (store.workspace.root / "releases").exists()


@pytest.mark.parametrize("name", ["", "../up", "Front Camera", ".hidden", "a/b", "x" * 65])
def test_invalid_model_name_is_rejected(store: Store, bundle: Ref, judge: Judge, name: str) -> None:
    with pytest.raises(ParameterError, match="invalid model name"):
        publishing.publish_release(store, bundle, judge(bundle), name)


def test_changed_release_folder_is_not_overwritten(store: Store, bundle: Ref, judge: Judge) -> None:
    case = publishing.publish_release(store, bundle, judge(bundle), "front-camera")
    (case.folder / "int8.cpu.onnx").write_bytes(b"other")
    with pytest.raises(VerificationError, match=r"changed: int8\.cpu\.onnx"):
        publishing.publish_release(store, bundle, judge(bundle), "front-camera")


def test_a_damaged_record_is_not_released(store: Store, bundle: Ref, judge: Judge) -> None:
    (store.folder(bundle) / "payload" / "fp32.onnx").write_bytes(b"other")
    with pytest.raises(RecordError, match="was changed"):
        publishing.publish_release(Store(store.workspace), bundle, judge(bundle), "front-camera")
    assert not list((store.workspace.root / "releases" / "front-camera").iterdir())


def run(*arguments: str) -> tuple[int, str, str]:
    """What a shell would see of ``workbench verify``."""
    runner = CliRunner()

    @click.command(context_settings={"ignore_unknown_options": True})
    @click.argument("rest", nargs=-1, type=click.UNPROCESSED)
    def shell(rest: tuple[str, ...]) -> None:
        main(list(rest))

    result = runner.invoke(shell, ["verify", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def released(store: Store, bundle: Ref, judge: Judge) -> publishing.PublishedRelease:
    return publishing.publish_release(store, bundle, judge(bundle), "front-camera")


def test_verify_reports_what_it_checked(released: publishing.PublishedRelease) -> None:
    code, out, err = run(str(released.folder), "--json")
    assert (code, err) == (0, "")
    body = json.loads(out)
    assert body["verified"] is True
    assert set(body["files"]) == set(FILES)
    code, out, _ = run(released.ref[:16])
    assert code == 0
    assert "no file changed, missing or extra" in out


def test_verify_elsewhere_needs_only_the_public_key(
    workspace: Workspace,
    released: publishing.PublishedRelease,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(released.folder, tmp_path / "car" / "bundle")
    shutil.copyfile(signing_key(workspace).public, tmp_path / "car" / "key.pem")
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "car" / ".workbench"))
    bundle = str(tmp_path / "car" / "bundle")
    assert run(bundle, "--key", str(tmp_path / "car" / "key.pem"))[0] == 0
    code, _, err = run(bundle)
    assert code == 1
    assert "--key" in err
    assert not (tmp_path / "car" / ".workbench").exists()


@pytest.mark.parametrize("as_json", [False, True])
def test_verify_fails_with_a_status_and_a_reason(
    released: publishing.PublishedRelease, as_json: bool
) -> None:
    (released.folder / "extra.txt").touch()
    code, out, err = run(str(released.folder), *(["--json"] if as_json else []))
    assert code == 1
    assert "extra: extra.txt" in err
    if as_json:
        assert json.loads(out)["error"]["kind"] == "verification"


def test_a_folder_signed_again_is_not_the_release(
    workspace: Workspace, store: Store, released: publishing.PublishedRelease
) -> None:
    from workbench.release import signing

    signing.sign_folder(released.folder, signing_key(workspace))
    assert run(str(released.folder))[0] == 0
    code, _, err = run(released.ref[:16])
    assert code == 1
    assert "signed again" in err


def test_verify_of_an_unknown_release_is_an_error(released: publishing.PublishedRelease) -> None:
    for wrong, message in (
        ("no/such/folder", "no such bundle"),
        ("release/", "releases match"),
        ("release/ffffffffffff", "no releases match"),
    ):
        code, _, err = run(wrong)
        assert code == 1
        assert message in err


# Records, folders and MLflow can be written by others; signatures decide.


def forged(store: Store, case: publishing.PublishedRelease, **changes: object) -> Ref:
    """A record that claims something else, with the signature of a real release."""
    real = store.get(case.ref, Release)
    side = {"signature": store.side(case.ref, "signature")}
    return store.put(real.model_copy(update=changes), side=side)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "other"},
        {"promoted": True, "verdict": Verdict.PASS},
        {"promoted": True},
        {"version": 7},
        {"version": None},
        {"gates": f"gates/{'b' * 64}"},
    ],
)
def test_a_forged_record_does_not_count(
    store: Store, bundle: Ref, judge: Judge, changes: dict[str, object]
) -> None:
    failed = judge(bundle, Verdict.FAIL)
    case = publishing.publish_release(store, bundle, failed, "front-camera")
    ref = forged(store, case, **changes)
    workspace = store.workspace
    for model in ("front-camera", "other"):
        found = releases.registered_releases(workspace, model)
        assert ref not in [release.ref for release in found.releases]
        assert "champion" not in found.aliases
    with pytest.raises(VerificationError):
        publishing.verify_release(workspace, ref)
    with pytest.raises(RecordError, match="no release has this alias"):
        resolve_reference(workspace, "models:/front-camera@champion")
    with pytest.raises((VerificationError, RecordError)):
        resolve_reference(workspace, "models:/other@champion")
    assert resolve_reference(workspace, "models:/front-camera@candidate") == case.ref


def test_versions_follow_the_records_and_never_restart(
    store: Store, bundle: Ref, judge: Judge
) -> None:
    first = publishing.publish_release(store, bundle, judge(bundle, Verdict.FAIL), "front-camera")
    second = publishing.publish_release(store, bundle, judge(bundle), "front-camera")
    assert (first.version, second.version) == (1, 2)
    assert first.folder != second.folder
    for case in (first, second):
        assert publishing.verify_release(store.workspace, case.ref).release is not None
    shutil.rmtree(store.workspace.root / "releases")
    again = publishing.publish_release(store, bundle, judge(bundle), "front-camera")
    assert (again.ref, again.version) == (second.ref, 2)
    assert publishing.publish_release(store, bundle, judge(bundle), "other").version == 1
    for text, expected in {"/1": first, "/2": second, "@champion": second}.items():
        assert resolve_reference(store.workspace, f"models:/front-camera{text}") == expected.ref


def test_the_order_of_releases_does_not_follow_the_clock(
    store: Store, bundle: Ref, judge: Judge
) -> None:
    cases = [
        publishing.publish_release(store, bundle, judge(bundle, verdict), "front-camera")
        for verdict in (Verdict.FAIL, Verdict.PASS)
    ]
    for at, case in enumerate(reversed(cases)):  # as after a restored backup
        os.utime(store.folder(case.ref) / "COMPLETE", (at + 1, at + 1))
    aliases = releases.registered_releases(store.workspace, "front-camera").aliases
    assert {name: one.version for name, one in aliases.items()} == {"candidate": 2, "champion": 2}


def test_a_release_is_not_passed_off_under_another_name(
    released: publishing.PublishedRelease,
) -> None:
    other = released.folder.parent.with_name("truck-camera") / released.folder.name
    shutil.copytree(released.folder, other)
    code, _, err = run(str(other))
    assert code == 1
    assert "a release of front-camera, not of truck-camera" in err
    elsewhere = released.folder.parents[2] / "download"
    shutil.copytree(released.folder, elsewhere)
    assert run(str(elsewhere))[0] == 0
    code, _, err = run(str(elsewhere), "--model", "truck-camera")
    assert code == 1
    assert "expected a release of truck-camera, found a release of front-camera" in err


def test_a_release_with_an_older_signature_counts_until_there_is_a_newer_one(
    store: Store, bundle: Ref, judge: Judge
) -> None:
    key, workspace = signing_key(store.workspace), store.workspace
    folder = workspace.release_folder("front-camera", bundle.partition("/")[2])
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    verified = signing.sign_folder(folder, key)  # without a release: what version 1 covered
    report = judge(bundle)
    record = Release(
        model="front-camera",
        bundle=bundle,
        gates=report,
        verdict=Verdict.PASS,
        promoted=True,
        key=key.fingerprint,
        signature=verified.signature,
    )
    old = store.put(record, side={"registry": {"version": 4, "run": "r"}})
    found = releases.resolve_model(workspace, "front-camera", alias="champion")
    assert (found.ref, found.version, found.older) == (old, 4, True)
    assert resolve_reference(workspace, "models:/front-camera/4") == old
    new = publishing.publish_release(store, bundle, report, "front-camera")
    assert new.version == 5
    assert resolve_reference(workspace, "models:/front-camera@champion") == new.ref
    assert run(old[:20])[0] == run(new.ref[:20])[0] == 0


def test_without_the_key_there_is_an_error_and_not_an_older_champion(
    store: Store, bundle: Ref, judge: Judge
) -> None:
    case = publishing.publish_release(store, bundle, judge(bundle), "front-camera")
    workspace = store.workspace
    for path in workspace.secrets.iterdir():
        path.unlink()
    for lost in (True, False):
        with pytest.raises(VerificationError, match="no release of front-camera counts"):
            plan._champion_before(workspace, "front-camera", set())
        with pytest.raises(VerificationError, match="no release of front-camera counts"):
            resolve_reference(workspace, "models:/front-camera@champion")
        (row,) = catalog.list_releases(store)
        assert (row.ref, row.promoted, row.verdict) == (case.ref, False, "NOT SIGNED")
        if lost:
            signing_key(workspace)  # another one


def test_lists_of_releases_show_what_is_signed(store: Store, bundle: Ref, judge: Judge) -> None:
    failed = publishing.publish_release(store, bundle, judge(bundle, Verdict.FAIL), "front-camera")
    forged(store, failed, promoted=True, verdict=Verdict.PASS)
    forged(store, failed, model="x' OR name != '", promoted=True)
    rows = catalog.list_releases(store)
    assert len(rows) == 3
    assert not any(row.promoted for row in rows)
    assert releases.release_models(store.workspace) == ["front-camera"]
    assert not any(row.champion for row in catalog.list_models(store))


# Rollbacks.


def three_champions(store: Store) -> list[publishing.PublishedRelease]:
    """Releases 1, 2 and 3 of one model, each of which became champion."""
    cases = []
    for number in range(3):
        record = ExportBundle(
            checkpoint=CHECKPOINT, calibration=DATASET, classes=("car", str(number)), parity={}
        )
        bundle = store.put(record, {**FILES, "manifest.json": b'{"n": %d}' % number})
        passed = report(Verdict.PASS, gate(Verdict.PASS)).model_copy(update={"candidate": bundle})
        cases.append(
            publishing.publish_release(store, bundle, store.put(passed, METRICS), "front-camera")
        )
    return cases


def versions_by_alias(store: Store) -> dict[str, int | None]:
    aliases = releases.registered_releases(store.workspace, "front-camera").aliases
    return {name: release.version for name, release in aliases.items()}


def test_a_rollback_goes_one_champion_back_each_time(store: Store) -> None:
    cases = three_champions(store)
    assert versions_by_alias(store) == {"candidate": 3, "champion": 3, "previous": 2}
    done = publishing.roll_back(store, "front-camera", by="Ann", reason="misses cyclists")
    assert (done.withdrawn.version, done.champion.version) == (3, 2)
    assert versions_by_alias(store) == {"candidate": 3, "champion": 2, "previous": 1}
    # Publishing the withdrawn bundle again does not bring it back.
    record = store.get(cases[2].ref, Release)
    again = publishing.publish_release(store, record.bundle, record.gates, "front-camera")
    assert again.ref == cases[2].ref
    assert versions_by_alias(store)["champion"] == 2
    second = store.get(cases[1].ref, Release).bundle
    assert plan._champion_before(store.workspace, "front-camera", set()) == second
    publishing.roll_back(store, "front-camera", by="Ann", reason="worse at night, too")
    assert versions_by_alias(store) == {"candidate": 3, "champion": 1}
    with pytest.raises(RecordError, match="no champion before this one"):
        publishing.roll_back(store, "front-camera", by="Ann", reason="once more")
    judged = report(Verdict.PASS, gate(Verdict.PASS), gate(Verdict.PASS))
    fresh = judged.model_copy(update={"candidate": record.bundle})
    new = publishing.publish_release(
        store, record.bundle, store.put(fresh, METRICS), "front-camera"
    )
    assert new.version == 4
    assert versions_by_alias(store) == {"candidate": 4, "champion": 4, "previous": 1}


def _forged_rollback(cases: list[publishing.PublishedRelease], key: str) -> Rollback:
    return Rollback(
        model="front-camera",
        withdrawn=cases[2].ref,
        restored=cases[1].ref,
        after=3,
        number=1,
        by="Ann",
        reason="none",
        key=key,
    )


def test_a_rollback_of_another_key_does_not_count(store: Store) -> None:
    cases = three_champions(store)
    ref = store.put(_forged_rollback(cases, "00" * 32))
    assert versions_by_alias(store)["champion"] == 3
    real = publishing.roll_back(store, "front-camera", by="Ann", reason="misses cyclists")
    store.write_side(ref, "signature", store.side(real.ref, "signature"))
    assert versions_by_alias(store)["champion"] == 2
    found = releases.registered_releases(store.workspace, "front-camera")
    assert list(found.refused) == [ref]


def test_a_rollback_that_claims_the_own_key_stops_aliases(store: Store) -> None:
    cases = three_champions(store)
    own = signing_key(store.workspace).fingerprint
    ref = store.put(_forged_rollback(cases, own))
    with pytest.raises(RecordError, match="the rollback is not signed") as caught:
        versions_by_alias(store)
    assert "workbench audit log" in str(caught.value)
    shutil.rmtree(store.folder(ref))
    next(store.workspace.index.glob(f"sequence/*.{ref.replace('/', '.')}")).unlink()
    assert versions_by_alias(store)["champion"] == 3


def flip_in_signature(path: Path) -> None:
    body = json.loads(path.read_bytes())
    body["signature"] = body["signature"].replace(body["signature"][20], "x")
    path.write_text(json.dumps(body))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(b"{" + path.read_bytes()), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.write_text("[1]"), "is damaged"),
        (lambda path: path.write_text('{"algorithm": "none"}'), "is damaged"),
        (lambda path: path.unlink(), "is not signed"),
        (flip_in_signature, "is not valid"),
    ],
)
def test_damage_to_the_signature_of_a_rollback_brings_no_model_back(
    store: Store, damage: Callable[[Path], object], words: str
) -> None:
    three_champions(store)
    done = publishing.roll_back(store, "front-camera", by="Ann", reason="misses cyclists")
    damage(store.folder(done.ref) / "side" / "signature.json")
    with pytest.raises(RecordError, match=words):
        versions_by_alias(store)
    found = releases.registered_releases(store.workspace, "front-camera")
    assert words in found.refused[done.ref]
    findings = check_records(store.workspace).findings
    assert [(one.where, one.repaired) for one in findings] == [(done.ref, False)]


def test_nothing_goes_back_to_a_release_that_was_changed(store: Store) -> None:
    cases = three_champions(store)
    (cases[1].folder / "int8.cpu.onnx").write_bytes(b"evil")
    with pytest.raises(VerificationError, match="changed"):
        publishing.roll_back(store, "front-camera", by="Ann", reason="misses cyclists")
    for by, reason in (("\u0430nn", "x"), ("Ann", "a\nb"), ("Ann", ""), ("", "x")):
        with pytest.raises(ParameterError):
            publishing.roll_back(store, "front-camera", by=by, reason=reason)
    assert versions_by_alias(store)["champion"] == 3


def test_the_command_rolls_back_and_says_so(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    three_champions(store)
    with pytest.raises(SystemExit) as ended:
        main(["rollback", "front-camera", "--reason", "misses cyclists", "--by", "Ann", "--json"])
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    assert (found["champion"]["version"], found["withdrawn"]["version"]) == (2, 3)
    record = store.get(found["rollback"], Rollback)
    assert (record.by, record.reason, record.after) == ("Ann", "misses cyclists", 3)


def test_releases_and_rollbacks_are_in_the_audit_log(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = three_champions(store)
    done = publishing.roll_back(store, "front-camera", by="Ann", reason="misses cyclists")
    events = [entry.event for entry in read_log(store.workspace)]
    assert events == ["released"] * 3 + ["rolled-back"]
    with pytest.raises(SystemExit) as ended:
        main(["audit", "log", "--of", cases[2].ref, "--json"])
    assert not ended.value.code
    entries = json.loads(capsys.readouterr().out)["entries"]
    assert [entry["event"] for entry in entries] == ["released", "rolled-back"]
    assert entries[1]["detail"] == {"model": "front-camera", "reason": "misses cyclists"}
    # Someone deletes the rollback: the champion is back, and the log says that it should not be.
    shutil.rmtree(store.folder(done.ref))
    lines = (store.workspace.root / "audit" / "log.jsonl").read_bytes().splitlines(keepends=True)
    (store.workspace.root / "audit" / "log.jsonl").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(SystemExit) as ended:
        main(["audit", "verify"])
    assert ended.value.code == 1
    assert "entries 4 to 4 are missing" in capsys.readouterr().out

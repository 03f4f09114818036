"""What a release says, signed claim by claim; what may not be released, and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import workbench as wb
from tests.release.world import RULES, World, gate, make_world
from workbench.audit import keys
from workbench.audit.log import read_log
from workbench.cli import cli, fleet
from workbench.core import digest
from workbench.core.errors import ParameterError, Refusal, VerificationError
from workbench.core.keyring import signing_key
from workbench.core.types import Json
from workbench.records import releases
from workbench.records.base import GateReport, Verdict, digest_of, make_ref
from workbench.records.catalog import list_releases
from workbench.records.claims import ENVELOPE_FILE, read_claims, read_waivers
from workbench.records.model_types import Claim, ExportBundle, Release
from workbench.records.references import resolve_reference
from workbench.records.store import Store
from workbench.release import publishing
from workbench.release.claims import add_claim, waive
from workbench.release.pack import write_pack
from workbench.release.registry import alias_history


@pytest.fixture
def world(store: Store) -> World:
    return make_world(store)


def release(
    world: World, gates: str | None = None, bundle: str | None = None, **options: Any
) -> str:
    bundle, gates = bundle or world.bundle, gates or world.gates
    return publishing.publish_release(world.store, bundle, gates, "camera", **options).ref


def predicates(world: World, ref: str) -> dict[str, Json]:
    counted, refused = read_claims(world.store, ref)
    assert not refused
    return {claim.record.type: claim.predicate for claim in counted}


def test_a_release_has_four_claims_and_takes_later_ones(world: World) -> None:
    ref = release(world)
    first = read_claims(world.store, ref)[0]
    assert [one.record.type for one in first] == [
        "gate-report",
        "model-card",
        "sbom",
        "provenance",
    ]
    assert release(world) == ref and read_claims(world.store, ref)[0] == first
    add_claim(world.store, ref, "field-report", {"vehicles": 12, "fallbacks": 0}, by="Kim")
    after = read_claims(world.store, ref)[0]
    assert after[:4] == first and after[4].predicate["vehicles"] == 12
    assert [entry.event for entry in read_log(world.store.workspace, ref)] == [
        "released",
        "claimed",
    ]


def test_the_card_has_licences_and_intervals_in_the_hubs_form(world: World) -> None:
    text = predicates(world, release(world))["model-card"]["text"]
    head = yaml.safe_load(text.split("---")[1])
    assert head["pipeline_tag"] == "object-detection"
    assert head["license_name"] == "Apache-2.0; CC-BY-4.0"
    (result, _) = head["model-index"][0]["results"]
    assert result["metrics"][0]["type"] == "ap50" and result["metrics"][0]["value"] == 0.6
    assert result["dataset"]["revision"] == digest_of(world.dataset)
    assert "| ap50 | all | PASS | 0.6 | [0.5, …] | 0.4 | 240 boxes |" in text


def test_the_sbom_lists_model_data_suppliers_and_packages(world: World) -> None:
    ref = release(world)
    sbom = predicates(world, ref)["sbom"]
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
    model = sbom["metadata"]["component"]
    assert model["type"] == "machine-learning-model" and model["version"] == "1"
    parts = {one["name"]: one for one in sbom["components"]}
    assert parts["rides"]["licenses"] == [{"license": {"id": "CC-BY-4.0"}}]
    assert parts["pypi:lite0"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert parts["torch"]["purl"] == "pkg:pypi/torch@2.13.0"
    data = model["modelCard"]["modelParameters"]["datasets"]
    assert data == [{"ref": parts["rides"]["bom-ref"]}]
    refs = [one["bom-ref"] for one in [model, *sbom["components"]]]
    assert len(set(refs)) == len(refs)
    assert {one["ref"] for one in sbom["dependencies"]} == set(refs)
    metric = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0]
    assert metric["confidenceInterval"] == {"lowerBound": "0.5"}


def test_the_sbom_is_valid_against_the_schema(world: World) -> None:
    sbom = predicates(world, release(world))["sbom"]
    check = JsonStrictValidator(SchemaVersion.V1_6)
    assert check.validate_str(json.dumps(sbom)) is None
    assert check.validate_str(json.dumps({**sbom, "version": "one"})) is not None


def test_provenance_names_steps_and_what_they_used(world: World) -> None:
    build = predicates(world, release(world))["provenance"]["buildDefinition"]
    steps = {one["step"]: one for one in build["externalParameters"]["steps"]}
    assert steps.keys() == {"train", "export", "validate"}
    assert steps["validate"]["inputs"]["dataset"] == world.dataset
    assert world.dataset in {one["uri"] for one in build["resolvedDependencies"]}
    assert build["internalParameters"]["missing"] == []


@pytest.mark.parametrize(
    ("data", "supplier", "named"),
    [
        ("CC-BY-NC-SA-4.0", "Apache-2.0", "dataset rides: CC-BY-NC-SA-4.0"),
        ("non-commercial use only", "MIT", "dataset rides"),
        ("CC-BY-4.0", "CC-BY-NC-4.0", "supplier pypi:lite0: CC-BY-NC-4.0"),
        ("for academic use only", "MIT", "dataset rides"),
    ],
)
def test_a_licence_that_forbids_the_use_is_a_refusal(
    store: Store, data: str, supplier: str, named: str
) -> None:
    world = make_world(store, licence=data, supplier=supplier)
    with pytest.raises(VerificationError, match="forbids a commercial release") as refused:
        release(world)
    assert refused.value.reason == Refusal.LICENCE_FORBIDS and named in refused.value.what
    assert not list(store.refs("release"))
    assert release(world, use="research")


def lowered(world: World) -> str:
    """A threshold that was lowered in the report, after the run."""
    return world.report(gates=(gate("ap50", 0.1), gate("vru-recall", 0.3)))


def lowered_everywhere(world: World) -> str:
    """The rules in its payload were lowered, too; their digest is the one of the run."""
    rules = {"gates": [{**one, "bound": 0.1} for one in RULES["gates"]]}
    return world.report(rules, gates=(gate("ap50", 0.1), gate("vru-recall", 0.1)))


def renamed(world: World) -> str:
    return world.report(gates=(gate("ap50", 0.4), gate("vru-recall-by-day", 0.3)))


def other_slice(world: World) -> str:
    """The bound of the night is shown as that of the day."""
    night = gate("vru-recall", 0.3).model_copy(update={"slice": "light=day"})
    return world.report(gates=(gate("ap50", 0.4), night))


def left_out(world: World) -> str:
    return world.report(gates=(gate("ap50", 0.4),))


def optional(world: World) -> str:
    weak = gate("vru-recall", 0.3).model_copy(update={"required": False})
    return world.report(gates=(gate("ap50", 0.4), weak))


def made_up(world: World) -> str:
    """Consistent in itself, but no run made it, and a run judged this bundle."""
    rules = {"gates": [{**one, "bound": 0.1} for one in RULES["gates"]]}
    gates = (gate("ap50", 0.1), gate("vru-recall", 0.1))
    return world.report(rules, rules=digest.of_json(rules), gates=gates)


def without_rules(world: World) -> str:
    """Thresholds that nothing can be compared with, for a bundle that no run has judged."""
    bundle = world.another_bundle()
    gates = (gate("ap50", 0.01), gate("vru-recall", 0.01))
    report = world.store.get(world.gates, GateReport)
    changed = report.model_copy(update={"candidate": bundle, "gates": gates})
    return world.store.put(changed, {"metrics.json": b"{}"})


def other_dataset(world: World) -> str:
    return world.report(run={}, dataset=make_ref("dataset", "9" * 64))


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (lowered, Refusal.GATES_EDITED),
        (lowered_everywhere, Refusal.GATES_EDITED),
        (renamed, Refusal.GATES_EDITED),
        (left_out, Refusal.GATES_EDITED),
        (other_slice, Refusal.GATES_EDITED),
        (optional, Refusal.GATES_EDITED),
        (made_up, Refusal.GATES_EDITED),
        (without_rules, Refusal.GATES_EDITED),
        (other_dataset, Refusal.GATES_OTHER_DATASET),
    ],
)
def test_a_gate_report_that_is_not_the_runs_is_refused(
    world: World, attack: Callable[[World], str], reason: Refusal
) -> None:
    with pytest.raises(VerificationError) as refused:
        report = attack(world)
        release(world, report, world.store.get(report, GateReport).candidate)
    assert refused.value.reason == reason


def test_a_report_is_of_the_threshold_that_the_bundle_acts_at(world: World) -> None:
    point = {"threshold": 0.41, "how": "lowest with a precision of 45 %"}
    manifest = digest.canonical_json({"operating_point": point})
    bundle = world.another_bundle(manifest=manifest)
    changes = {"candidate": bundle, "run": {"bundle": bundle}}
    for judged_at in (None, {**point, "threshold": 0.2}):
        report = world.report(judged_at=judged_at, **changes)
        with pytest.raises(VerificationError, match=r"the bundle acts at 0\.41") as refused:
            release(world, report, bundle)
        assert refused.value.reason == Refusal.GATES_EDITED
    report = world.report(judged_at=point, **changes)
    card = predicates(world, release(world, report, bundle))["model-card"]["text"]
    assert "| acts at a score of | 0.41, lowest with a precision of 45 % |" in card


def test_a_report_against_an_older_champion_is_stale(world: World) -> None:
    release(world)
    second, third = world.another_bundle(b"2"), world.another_bundle(b"3")
    run = {"bundle": second}
    passed = world.report(candidate=second, reference=world.bundle, run=run)
    release(world, passed, second)
    stale = world.report(candidate=third, reference=world.bundle, run={"bundle": third})
    with pytest.raises(VerificationError, match="but the champion is camera@2") as refused:
        release(world, stale, third)
    assert refused.value.reason == Refusal.GATES_STALE
    fresh = world.report(candidate=third, reference=second, run={"bundle": third})
    assert release(world, fresh, third)


def test_a_revoked_key_takes_its_releases_with_it(world: World) -> None:
    old = release(world)
    workspace = world.store.workspace
    key = signing_key(workspace).fingerprint
    keys.rotate(workspace, "release", by="Ann")
    assert resolve_reference(workspace, "models:/camera@champion") == old  # rotated: still valid
    keys.revoke(workspace, key, by="Ann", reason="laptop stolen")
    for door in (
        lambda: resolve_reference(workspace, "models:/camera@champion"),
        lambda: resolve_reference(workspace, "models:/camera/1"),
        lambda: publishing.verify_release(workspace, old),
    ):
        with pytest.raises(VerificationError, match=r"revoked on .* by Ann: laptop stolen"):
            door()
    counted, refused = read_claims(world.store, old)
    assert not counted and "laptop stolen" in next(iter(refused.values()))
    new = release(world)
    assert new != old and resolve_reference(workspace, "models:/camera@champion") == new
    assert publishing.verify_release(workspace, new).release is not None


def test_a_changed_claim_does_not_count(world: World) -> None:
    ref = release(world)
    claim = next(one for one in read_claims(world.store, ref)[0] if one.record.type == "sbom")
    copied = claim.record.model_copy(update={"type": "model-card"})
    world.store.put(copied, {ENVELOPE_FILE: claim.envelope})  # passed off as another claim
    other = claim.record.model_copy(update={"release": make_ref("release", "9" * 64)})
    moved = world.store.put(other, {ENVELOPE_FILE: claim.envelope})
    counted, refused = read_claims(world.store, ref)
    assert len(counted) == 4 and "says something else" in next(iter(refused.values()))
    assert not read_claims(world.store, other.release)[0] and moved.startswith(Claim.KIND)


def test_a_waiver_is_signed_dated_reasoned_and_shown(world: World) -> None:
    failed = gate("vru-recall", 0.3, value=0.2, low=0.1)
    report = world.report(gates=(gate("ap50", 0.4), failed), verdict=Verdict.FAIL, run={})
    ref = release(world, report)
    soon = datetime.now(UTC).date() + timedelta(days=30)
    waive_it = partial(waive, world.store, ref, by="Kim", reason="fix in v2", until=soon)
    for name, options, problem in (
        ("ap50", {}, "needs no waiver"),
        ("vru", {}, "no gate 'vru'"),
        ("vru-recall", {"until": soon + timedelta(days=200)}, "180 days"),
        ("vru-recall", {"until": soon - timedelta(days=31)}, "180 days"),
        ("vru-recall", {"reason": ""}, "reason"),
    ):
        with pytest.raises(ParameterError, match=problem):
            waive_it(name, **options)
    waive_it("vru-recall")
    (waiver,) = read_waivers(world.store)[ref]
    assert (waiver.verdict, waiver.expired) == ("FAIL", False)
    (row,) = list_releases(world.store)
    assert row.waived == (f"vru-recall waived by Kim until {soon}: fix in v2",)
    assert not row.promoted and row.aliases == ("candidate",)  # it never makes a champion
    for command in (["releases"], ["verify", ref]):
        assert "waived by Kim until" in CliRunner().invoke(cli, command).output
    (entry,) = [one for one in read_log(world.store.workspace, ref) if one.event == "waived"]
    assert entry.detail == {"gate": "vru-recall", "until": str(soon), "reason": "fix in v2"}


def test_the_history_of_aliases_says_who_when_and_why(world: World) -> None:
    workspace = world.store.workspace
    release(world)
    second = world.another_bundle()
    release(world, world.report(candidate=second, run={"bundle": second}), second)
    publishing.roll_back(world.store, "camera", by="Kim", reason="misses cyclists")
    keys.revoke(workspace, signing_key(workspace).fingerprint, by="Ann", reason="stolen")
    moves = alias_history(workspace, "camera")
    assert [(m.event, m.candidate, m.champion, m.previous) for m in moves] == [
        ("released", 1, 1, None),
        ("released", 2, 2, 1),
        ("rolled-back", 2, 1, None),
        ("key-revoked", None, None, None),
    ]
    assert (moves[2].by, moves[2].why) == ("Kim", "misses cyclists")
    assert "misses cyclists" in CliRunner().invoke(cli, ["releases", "camera"]).output
    assert "KEY REVOKED" in CliRunner().invoke(cli, ["releases"]).output


DOORS: dict[str, Callable[[World, str, Path], object]] = {
    "alias": lambda world, ref, _: resolve_reference(
        world.store.workspace, "models:/camera@champion"
    ),
    "version": lambda world, ref, _: resolve_reference(world.store.workspace, "models:/camera/1"),
    "python": lambda world, ref, _: wb.open(world.store.workspace.root).model(
        "models:/camera@champion"
    ),
    "verify": lambda world, ref, _: publishing.verify_release(world.store.workspace, ref),
    "fleet": lambda world, ref, _: fleet._release(world.store.workspace, ref),
    "audit pack": lambda world, ref, out: write_pack(world.store, "camera", out / "p.zip"),
}


@pytest.mark.parametrize("door", DOORS)
def test_an_unsigned_promotion_is_refused_at_every_door(
    world: World, door: str, tmp_path: Path
) -> None:
    """As somebody writes it who can write records and has no key: by hand, or in a notebook."""
    signing_key(world.store.workspace)
    forged = Release(
        model="camera",
        bundle=world.bundle,
        gates=world.gates,
        verdict=Verdict.PASS,
        promoted=True,
        key=signing_key(world.store.workspace).fingerprint,
        signature="0" * 64,
        version=1,
    )
    ref = world.store.put(forged)
    folder = releases.release_folder(world.store.workspace, forged)
    folder.mkdir(parents=True)
    for name in world.store.payload_names(world.bundle):
        (folder / name).write_bytes(world.store.read_payload(world.bundle, name))
    with pytest.raises(VerificationError) as refused:
        DOORS[door](world, ref, tmp_path)
    assert refused.value.reason == Refusal.UNSIGNED


def test_a_pickle_is_not_released(world: World) -> None:
    record = world.store.get(world.bundle, ExportBundle)
    for name, content in {"net.pt": b"x", "net.onnx": b"\x80\x04K\x01."}.items():
        bundle = world.store.put(record, {"manifest.json": b"{}", name: content})
        report = world.report(candidate=bundle, run={"bundle": bundle})
        with pytest.raises(VerificationError, match="can run code") as refused:
            release(world, report, bundle)
        assert refused.value.reason == Refusal.UNSAFE_FILE

"""Writes one small record of every kind beside this file, to be committed and read for ever.

Run it after adding a kind of record: ``python -m tests.golden.make``. A record that is there
already is never written again, because files written by yesterday's code are what the test is
about.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests.release.world import make_world
from workbench.core import digest
from workbench.core.keyring import public_key
from workbench.core.workspace import Workspace
from workbench.records import base, dataset, evidence_types, frames, model_types, types
from workbench.records.base import Record, make_ref
from workbench.records.store import Store
from workbench.release import pack_verifier
from workbench.release.pack import write_pack
from workbench.release.publishing import publish_release

HERE = Path(__file__).parent
INDEX = HERE / "golden.json"

FRAME = digest.of_bytes(b"golden frame")
BOX = frames.Box(x=1.5, y=2.0, w=30.25, h=12.0)
SCHEMA = frames.LabelSchema(
    name="golden",
    version=1,
    classes=("car", "pedestrian"),
    vulnerable=("pedestrian",),
    mapping={"person": "pedestrian"},
)


def _ref(kind: str) -> str:
    return make_ref(kind, digest.of_bytes(f"golden {kind}".encode()))


def _dataset() -> dataset.Dataset:
    drive = frames.Drive(
        id="d1",
        vehicle="v1",
        vehicle_type=frames.VehicleType.TRUCK,
        camera_height_m=2.3,
        camera_pitch_deg=1.5,
        sensor="golden camera",
        firmware="1.0",
        calibration=frames.Calibration(id="c1", fx=700.0, fy=701.0, cx=320.0, cy=240.0),
        started_at="2026-01-01T00:00:00Z",
        time_source="camera clock",
        simulated=True,
    )
    frame = frames.Frame(
        id=FRAME,
        drive="d1",
        index=3,
        timestamp_us=100000,
        width=640,
        height=480,
        suffix=".jpg",
        conditions=frames.Conditions(
            light=frames.Light.NIGHT, weather=frames.Weather.RAIN, construction=True
        ),
        redaction="none",
        role=frames.Role.SAFETY,
        events=("cut_in",),
    )
    label = frames.Label(
        frame=FRAME,
        cls="car",
        box=BOX,
        origin=frames.Origin.REPLAYED,
        annotator="annotator 1",
        occluded=0.25,
        truncated=0.0,
        track="7",
        source=_ref("batch"),
        labeled_at="2026-01-01T00:00:00Z",
    )
    return dataset.Dataset(
        name="golden",
        label_schema=SCHEMA,
        drives=(drive,),
        frames=(frame,),
        labels=(label,),
        simulated=True,
        split={"method": "drive", "seed": 0},
    )


def _records() -> list[tuple[Record, dict[str, Path | bytes]]]:
    gate = base.GateResult(
        name="recall",
        verdict=base.Verdict.INSUFFICIENT,
        n=12,
        unit="drives",
        value=0.5,
        bound=0.6,
        low=0.3,
        high=0.7,
        method="bootstrap over drives",
        slice="night",
        why="12 drives",
    )
    rate = types.AgreementRate(
        subject="labeler",
        name="a1",
        against="gold",
        frames=2,
        n=7,
        iou=0.9,
        iou_interval=(0.8, 0.95),
        missed=0.125,
        missed_interval=(0.0, 0.25),
        kappa=None,
    )
    prediction = types.Prediction(frame=FRAME, cls="car", box=BOX, score=0.5)
    annotator = types.Annotator(id="a1", frames=1, boxes=1, minutes=None, simulated=True)
    choice = types.SelectedFrame(
        frame=FRAME, rank=1, score=0.75, arm="random", reasons=("rare at night",)
    )
    return [
        (
            types.Campaign(
                name="night-riders",
                conditions={"light": "night"},
                classes=("cyclist",),
                score=(0.1, 0.5),
                exemplar=FRAME,
                vector=(0.6, 0.8),
                encoder="e" * 64,
                similarity=0.5,
                regions=("eu",),
                share=0.5,
                bytes_a_vehicle=1000,
                frames_a_drive=2,
                days=(3, 9),
                by="ana",
                alarm=_ref("alarm"),
            ),
            {},
        ),
        (
            types.Alarm(
                signal="confidence",
                also=("detections[car]",),
                what="location",
                slice="light=night",
                cause="model",
                why="golden",
                reference=0.5,
                current=0.25,
                effect=-1.5,
                p_value=0.001,
                alpha=0.01,
                days=(28, 34),
                reference_days=(0, 27),
                drives=("vehicle-0001/ride 1",),
                frames=(FRAME,),
                model=_ref("release"),
                evidence="replayed",
            ),
            {},
        ),
        (
            types.Selection(
                dataset=_ref("dataset"),
                model=_ref("checkpoint"),
                budget=1,
                seed=0,
                method="golden",
                parameters={"a": 1},
                chosen=(choice,),
            ),
            {},
        ),
        (
            types.LabelBatch(
                dataset=_ref("dataset"),
                selection=_ref("selection"),
                model=None,
                label_schema=SCHEMA,
                frames=(FRAME,),
                overlap=0.5,
            ),
            {"predictions.jsonl": dataset.to_json_lines([prediction])},
        ),
        (
            types.LabelSet(
                batch=_ref("batch"),
                annotators=(annotator,),
                labels=1,
                agreement={"iou": 0.9},
                simulated=True,
            ),
            {"labels.jsonl": dataset.to_json_lines(_dataset().labels)},
        ),
        (
            types.Agreement(
                labels=_ref("label"),
                same_object_iou=0.5,
                rule="golden",
                rates=(rate,),
                frames=2,
                disputed=1,
                simulated=True,
            ),
            {"disagreements.jsonl": b"{}\n"},
        ),
        (
            types.Withdrawal(
                dataset=_ref("dataset"),
                annotators=("a1",),
                frames=(FRAME,),
                reason="consent withdrawn",
                labels_removed=1,
            ),
            {"models.json": b"[]"},
        ),
        (
            model_types.Checkpoint(
                dataset=_ref("dataset"),
                classes=SCHEMA.classes,
                architecture={"width": 8},
                training={"epochs": 1},
                preprocessing={"width": 320},
                conditions={"threads": 1},
            ),
            {"weights.safetensors": b"golden weights", "curves.json": b"[]"},
        ),
        (
            model_types.CalibrationSet(
                dataset=_ref("dataset"),
                seed=0,
                frames=(FRAME,),
                slices={"night/rain": 1},
                drives=1,
                available=2,
                variants=3,
                required=("light=night",),
                uncovered=("weather=fog",),
                evaluated=4,
                apart="drive",
                methods=(
                    model_types.QuantizationResult(
                        method="minmax", frames=1, sqnr_db=38.5, agreement=0.9
                    ),
                ),
                why="golden",
                simulated=True,
            ),
            {},
        ),
        (
            model_types.ExportBundle(
                checkpoint=_ref("checkpoint"),
                calibration=_ref("dataset"),
                classes=SCHEMA.classes,
                parity={"fp32": 1e-06},
            ),
            {"manifest.json": b"{}"},
        ),
        (
            base.GateReport(
                candidate=_ref("bundle"),
                reference=None,
                dataset=_ref("dataset"),
                rules=digest.of_bytes(b"rules"),
                verdict=base.Verdict.INSUFFICIENT,
                gates=(gate,),
                simulated=True,
            ),
            {"metrics.json": b"{}"},
        ),
        (
            model_types.SweepReport(
                dataset=_ref("dataset"),
                figure="ap50 on 12 val frames",
                frames=12,
                models=(
                    model_types.SweepModel(
                        checkpoint=_ref("checkpoint"),
                        seed=1,
                        settings={"width": 0.5},
                        value=0.5,
                        low=0.25,
                        high=0.625,
                    ),
                ),
                settings=(model_types.SweepSetting(settings={"width": 0.5}, seeds=(1,), mean=0.5),),
                best=_ref("checkpoint"),
                decided=None,
                confidence=0.95,
                simulated=True,
            ),
            {},
        ),
        (
            types.MiningReport(
                selection=_ref("selection"),
                labels=(_ref("label"),),
                rare=("class=pedestrian+light=night",),
                arms=(
                    types.ArmOutcome(
                        arm="mined",
                        frames=30,
                        unlabelled=1,
                        rare_frames=9,
                        rare_objects=12,
                        rare_events=7,
                        hours=0.5,
                    ),
                    types.ArmOutcome(
                        arm="control",
                        frames=30,
                        unlabelled=0,
                        rare_frames=2,
                        rare_objects=2,
                        rare_events=2,
                        hours=0.5,
                    ),
                ),
                per="per labeler hour",
                time_from="measured by the label server",
                prevalence=0.066667,
                prevalence_interval=(0.0, 0.15),
                beaten=(
                    types.ArmComparison(
                        figure="rare frames per labeler hour",
                        change="ratio",
                        mined=18.0,
                        control=4.0,
                        value=4.5,
                        low=1.5,
                        high=None,
                        verdict=base.Verdict.PASS,
                        drives=12,
                        unit="12 drives",
                        why="",
                    ),
                ),
                models={"mined": _ref("checkpoint"), "control": _ref("checkpoint")},
                resamples=4000,
                confidence=0.95,
                simulated=False,
                headline="Mining beat chance.",
            ),
            {"frames.jsonl": b""},
        ),
        (
            types.Inspection(
                dataset=_ref("dataset"),
                model=_ref("checkpoint"),
                verdict=base.Verdict.INSUFFICIENT,
                gates=(gate,),
                exact=1,
                near=2,
                thin=3,
                suspects=4,
                parameters={"rules": {"gap_s": 10.0}},
                simulated=True,
            ),
            {"leaks.jsonl": b"{}\n"},
        ),
        (
            model_types.Release(
                model="golden",
                bundle=_ref("bundle"),
                gates=_ref("gates"),
                verdict=base.Verdict.INSUFFICIENT,
                promoted=False,
                key=digest.of_bytes(b"key"),
                signature=digest.of_bytes(b"signature"),
            ),
            {},
        ),
        (
            model_types.Rollback(
                model="golden",
                withdrawn=_ref("release"),
                restored=_ref("release"),
                after=2,
                number=1,
                by="Ann",
                reason="misses cyclists at night",
                key=digest.of_bytes(b"key"),
            ),
            {},
        ),
        (
            model_types.Claim(
                release=_ref("release"),
                type="waiver",
                by="Ann",
                signed_at="2026-01-01T00:00:00+00:00",
                key=digest.of_bytes(b"key"),
            ),
            {"envelope.json": b"{}"},
        ),
        (
            model_types.NotebookSource(name="golden", code=digest.of_bytes(b"code")),
            {"notebook.ipynb": b'{"cells": []}'},
        ),
        (
            model_types.Environment(
                python="3.11.7", distributions=("a==1.0",), machine={"cores": 2}
            ),
            {},
        ),
        (
            model_types.StepRun(
                step="train",
                key=digest.of_bytes(b"step key"),
                notebook=_ref("notebook"),
                environment=_ref("environment"),
                modules=digest.of_bytes(b"modules"),
                parameters={"seed": 0},
                inputs={"dataset": _ref("dataset")},
                outputs={"checkpoint": _ref("checkpoint")},
                metrics={"loss": 0.5},
            ),
            {},
        ),
        (
            model_types.CheckReceipt(
                notebook=_ref("notebook"),
                contract=digest.of_bytes(b"contract"),
                modules=digest.of_bytes(b"modules"),
                environment=_ref("environment"),
                checks={"parameters": "passed", "watch": "partial"},
                watch="partial",
                warnings=({"rule": "long-definition", "cell": 3, "line": 1},),
                outputs={"checkpoint": _ref("checkpoint")},
            ),
            {},
        ),
        (
            model_types.StepVersion(
                name="train",
                version=1,
                notebook=_ref("notebook"),
                contract=digest.of_bytes(b"contract"),
                modules=digest.of_bytes(b"modules"),
                environment=_ref("environment"),
                receipt=_ref("receipt"),
                owner="a@example.org",
                reviewer="b@example.org",
                commit="0" * 40,
            ),
            {},
        ),
        (
            evidence_types.Incident(
                name="child-behind-van",
                dataset=_ref("dataset"),
                label_schema=SCHEMA,
                frames=(FRAME,),
                objects=1,
                why="not braked for",
                by="Ann",
                found_in="telemetry",
                simulated=True,
            ),
            {
                "drives.jsonl": dataset.to_json_lines(_dataset().drives),
                "frames.jsonl": dataset.to_json_lines(_dataset().frames),
                "labels.jsonl": dataset.to_json_lines(_dataset().labels),
            },
        ),
        (evidence_types.IncidentSuite(incidents=(_ref("incident"),)), {}),
        (
            evidence_types.Holdout(
                dataset=_ref("dataset"),
                frames=(FRAME,),
                rules={"schema_version": 1},
                budget=5,
                by="Ann",
            ),
            {},
        ),
        (
            evidence_types.ScenarioReport(
                model=_ref("bundle"),
                grid="2026-1.1",
                assumptions={"braking": {"deceleration_mps2": 8}},
                results=(
                    evidence_types.ScenarioResult(
                        case="CPNA-20kmh-50%-night",
                        frames=40,
                        visible=38,
                        found=30,
                        first_s=4.0,
                        confirmed_s=2.5,
                        outcome="avoided",
                        impact_kmh=0.0,
                        unbraked_kmh=20.0,
                    ),
                ),
            ),
            {},
        ),
    ]


def make(home: Path) -> dict[str, str]:
    """One record of each kind in the store at ``home``; kind to reference."""
    store = Store(Workspace(home))
    quarantined = types.Quarantined(file="a.jpg", reason="unreadable", detail="it is torn")
    made = [dataset.save_dataset(store, _dataset(), made_by="ingest", quarantine=[quarantined])]
    made += [store.put(record, payload) for record, payload in _records()]
    return {ref.partition("/")[0]: ref for ref in made}


def _write_pack(folder: Path) -> None:
    """An audit pack of each version of its format, with the key that signed it."""
    path = folder / f"v{pack_verifier.VERSIONS[-1]}.zip"
    if path.exists():
        return
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        world = make_world(Store(Workspace(Path(scratch))))
        publish_release(world.store, world.bundle, world.gates, "camera")
        write_pack(world.store, "camera", path, by="Ann")
        path.with_suffix(".pub.pem").write_bytes(
            public_key(world.store.workspace, "root").read_bytes()
        )


def main() -> int:
    known: dict[str, str] = json.loads(INDEX.read_text()) if INDEX.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        made = make(Path(folder))
        store = Store(Workspace(Path(folder)))
        new = {kind: ref for kind, ref in made.items() if kind not in known}
        for kind, ref in new.items():
            target = HERE / kind
            if target.exists():
                print(f"{target} exists: golden records are never overwritten", file=sys.stderr)
                return 1
            (target / "payload").mkdir(parents=True)
            (target / "record.json").write_bytes((store.folder(ref) / "record.json").read_bytes())
            for name in store.payload_names(ref):
                (target / "payload" / name).write_bytes(store.payload(ref, name).read_bytes())
            if not any((target / "payload").iterdir()):
                (target / "payload").rmdir()
    INDEX.write_text(json.dumps({**known, **new}, indent=1, sort_keys=True) + "\n")
    _write_pack(HERE / "pack")
    for kind in made:
        print(f"{kind}: {'written' if kind in new else 'there already, left alone'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

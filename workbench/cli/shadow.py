"""`workbench shadow`: a candidate beside the champion, and the difference in misses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from workbench.cli.common import info, json_option, print_result, progress_bar, resolve_ref
from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.core.text import counted
from workbench.core.types import Json
from workbench.core.workspace import Workspace, find_workspace, write_atomic

if TYPE_CHECKING:
    from workbench.deployment.shadow_estimate import MissDifference
    from workbench.deployment.shadow_session import FrameSample
    from workbench.records.dataset import Dataset

__all__ = ()


@click.command()
@click.argument("champion")
@click.argument("candidate")
@click.argument("dataset")
@click.option("--model", default="int8.cpu.onnx", show_default=True, help="Model file of both.")
@click.option(
    "--fps",
    type=click.FloatRange(0, min_open=True),
    help="Frames a second, as from a camera; the candidate gets what time is left.  "
    "[default: wait for the candidate]",
)
@click.option(
    "--max-bytes",
    type=click.IntRange(1),
    default=20 << 20,
    show_default=True,
    help="Bytes of images that may come back.",
)
@click.option("--role", help="Only frames of this role; neither model has learned from `safety`.")
@click.option("--seed", default=0, show_default=True, help="Of the random choice of frames.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the frames that come back to this folder, with both answers.",
)
@click.option(
    "--vehicle", help="Send the frames as this vehicle of `workbench fleet up`, over its broker."
)
@json_option
def shadow(  # noqa: PLR0913, PLR0917 - one argument an option
    champion: str,
    candidate: str,
    dataset: str,
    model: str,
    fps: float | None,
    max_bytes: int,
    role: str | None,
    seed: int,
    output: Path | None,
    vehicle: str | None,
    as_json: bool,
) -> None:
    """Run CANDIDATE in the shadow of CHAMPION on the drives of DATASET, as a vehicle would.

    CHAMPION and CANDIDATE are bundle/PREFIX or release/PREFIX. Frames on which they disagree, and a
    random arm, come back within --max-bytes. If the dataset has labels, those of the returned
    frames say how many more objects the candidate misses, with an interval over drives.
    """
    from workbench.deployment.runtime import Runtime, load_bundle
    from workbench.deployment.session import frames_from_dataset
    from workbench.deployment.shadow import ShadowProcess
    from workbench.deployment.shadow_session import FrameSample, run_shadow
    from workbench.records.dataset import load_dataset
    from workbench.records.references import resolve_dataset
    from workbench.records.store import Store

    workspace = find_workspace()
    folders = [_bundle_folder(workspace, name) for name in (champion, candidate)]
    first, second = (load_bundle(folder, file=model) for folder in folders)
    if first.predictor.classes != second.predictor.classes:
        raise ParameterError("champion and candidate have different classes", where=candidate)
    data = load_dataset(Store(workspace), resolve_dataset(workspace, dataset))
    sources = frames_from_dataset(workspace, data)
    if role is not None:
        roles = {frame.id for frame in data.frames if frame.role == role}
        sources = [source for source in sources if source.frame in roles]
    if not sources:
        raise ParameterError(f"no frame with role {role}", where=dataset)
    sample = FrameSample(max_bytes, seed=seed)
    with (
        ShadowProcess(second.folder, second.digest, file=model) as process,
        progress_bar("shadow") as progress,
    ):
        summary = run_shadow(
            Runtime([first]),
            process,
            sources,
            sample,
            fps=fps,
            progress=progress,
        )
    kept = sample.kept()
    found = _difference(data, sample)
    result: Json = {
        "champion": first.digest,
        "candidate": second.digest,
        "dataset": data.ref,
        "evidence": "simulated" if data.simulated else "replayed",
        "frames": len(summary.answers),
        "compared": summary.compared,
        "dropped": summary.dropped,
        "disagreeing": summary.disagreeing,
        "returned": {
            "disagreement": sum(about["arm"] == "disagreement" for about, _ in kept),
            "random": sum(about["arm"] == "random" for about, _ in kept),
            "bytes": sum(len(image) for _, image in kept),
        },
        "difference": found
        and {
            "value": found.value,
            "low": found.low if found.drives > 1 else None,
            "high": found.high if found.drives > 1 else None,
            "confidence": found.confidence,
            "labels": found.labels,
            "drives": found.drives,
        },
        "output": str(output) if output else None,
    }
    if output is not None:
        _write(output, sample)
    if vehicle is not None:
        _send(workspace, vehicle, sample)
    print_result(result, as_json=as_json, text=_text(result))


def _bundle_folder(workspace: Workspace, name: str) -> Path:
    """Folder of a bundle; a release is verified first."""
    from workbench.records.store import Store
    from workbench.release.publishing import verify_release

    ref = resolve_ref(workspace, name, ("bundle", "release"))
    if ref.startswith("release/"):
        return verify_release(workspace, ref).folder
    return Store(workspace).folder(ref) / "payload"


def _difference(data: Dataset, sample: FrameSample) -> MissDifference | None:
    """The difference in misses, where every returned frame has labels of people or sources."""
    from workbench.deployment.runtime import AnswerBox
    from workbench.deployment.shadow_estimate import LabelledFrame, estimate_difference, missed
    from workbench.detection.boxes import boxes_to_array

    labelled = []
    if not data.labels or not sample.compared:
        return None
    for about, _ in sample.kept():
        labels = [one for one in data.labels_by_frame[about["frame"]] if not one.ignore]
        boxes = boxes_to_array([label.box for label in labels])
        truth = [
            AnswerBox(cls=label.cls, score=1.0, xyxy=tuple(map(float, box)))  # type: ignore[arg-type]
            for label, box in zip(labels, boxes, strict=True)
        ]
        misses = [
            missed(truth, [AnswerBox.model_validate(box) for box in about[name]])
            for name in ("champion", "candidate")
        ]
        labelled.append(LabelledFrame(about["drive"], about["probability"], misses[1] - misses[0]))
    return estimate_difference(labelled, sample.compared)


def _write(output: Path, sample: FrameSample) -> None:
    lines = []
    for number, (about, image) in enumerate(sample.kept()):
        name = f"{number:06d}{Path(about['file']).suffix or '.jpg'}"
        write_atomic(output / name, image)
        lines.append(digest.canonical_json({**about, "image": name}))
    write_atomic(output / "frames.jsonl", b"".join(line + b"\n" for line in lines))
    write_atomic(output / "compared.json", digest.canonical_json(sample.compared))


def _send(workspace: Workspace, vehicle: str, sample: FrameSample) -> None:
    from workbench.monitoring.broker import Broker
    from workbench.monitoring.mqtt import deliver
    from workbench.monitoring.queue import VehicleQueue
    from workbench.monitoring.rides import queue_frame

    fleet = workspace.root / "fleet"
    account = Broker(fleet / "telemetry" / "broker").account(vehicle)
    queue = VehicleQueue(fleet / "vehicles" / vehicle / "telemetry.sqlite")
    try:
        for about, image in sample.kept():
            queue_frame(queue, vehicle, about, image)
        done = deliver(queue, account)
    finally:
        queue.close()
    info(f"{vehicle}: {counted(done.settled, 'message')} arrived, {done.left} wait in its queue")


def _text(result: Json) -> str:
    returned, found = result["returned"], result["difference"]
    lines = [
        f"{counted(result['frames'], 'frame')}, evidence: {result['evidence']}",
        f"  {result['compared']} compared, {result['dropped']} not shown to the candidate, "
        f"{result['disagreeing']} with a box that only one model has",
        f"  come back: {returned['disagreement']} disagreements, {returned['random']} at random, "
        f"{returned['bytes']:,} bytes",
    ]
    if found is None:
        lines.append("  no labels: label the frames that came back to know who is right")
    else:
        interval = (
            "one drive says nothing about others"
            if found["low"] is None
            else f"{100 * found['confidence']:g} %: {found['low']:+.4f} to {found['high']:+.4f}"
        )
        lines.append(
            f"  missed objects a frame, candidate minus champion: {found['value']:+.4f} "
            f"({interval}; {counted(found['labels'], 'labelled frame')}, "
            f"{counted(found['drives'], 'drive')})"
        )
    return "\n".join(lines)

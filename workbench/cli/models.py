"""`workbench predict`, `verify`, `lineage` and `reproduce`: use a model and prove its origin."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workbench.cli.common import info, json_option, print_result, progress_bar, resolve_ref
from workbench.core import digest
from workbench.core.errors import ParameterError, RecordError, Refusal, VerificationError
from workbench.core.text import counted
from workbench.core.types import Json, Progress
from workbench.core.workspace import Workspace, find_workspace
from workbench.records.base import short_ref

if TYPE_CHECKING:
    from workbench.deployment.session import InputFrame
    from workbench.records.releases import SignedRelease
    from workbench.release.signing import VerifiedFolder

__all__ = ()


_SIGNATURE_FILE = "signature"
_OLDER_SIGNATURE = "an older signature, which covers the files but not the model's name and verdict"
_EXIT_DIFFERS = 3
_EXIT_CANCELLED = 130

_key_option = click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Public key (PEM) of the signer.  [default: the key of this workspace]",
)


@click.command()
@click.argument("bundle")
@click.argument("src")
@click.option(
    "--with",
    "others",
    multiple=True,
    metavar="BUNDLE",
    help="Fuse the boxes with those of this bundle. Repeatable.",
)
@click.option(
    "--model", default="int8.cpu.onnx", show_default=True, help="Model file of the bundle to run."
)
@click.option("--budget-ms", type=float, help="Time budget per frame (ms).")
@click.option(
    "--score",
    type=click.FloatRange(0, 1),
    help="Minimum score of a box.  [default: the threshold that the bundle was exported with]",
)
@click.option(
    "--threads", type=click.IntRange(1), default=2, show_default=True, help="Number of CPU threads."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write answers as JSON lines; a session that was killed continues.",
)
@click.option(
    "--draw",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write every frame with its boxes to this folder.",
)
@click.option(
    "--video",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write all frames with their boxes as one video: .mp4, .webm or .avi.",
)
@_key_option
@click.option("--signed", is_flag=True, help="Refuse unsigned bundles.")
@json_option
def predict(  # noqa: PLR0913, PLR0917 - one argument an option
    bundle: str,
    src: str,
    others: tuple[str, ...],
    model: str,
    budget_ms: float | None,
    score: float | None,
    threads: int,
    output: Path | None,
    draw: Path | None,
    video: Path | None,
    key: Path | None,
    signed: bool,
    as_json: bool,
) -> None:
    """Verify a bundle and run it on images; every frame gets an answer.

    BUNDLE is a bundle's folder, bundle/PREFIX, release/PREFIX or models:/NAME@ALIAS. SRC is an
    image, a video, a folder of them, a dataset (NAME or NAME@N) or one drive of it
    (NAME@N:DRIVE). Images with an EXIF rotation are refused, as ingest refuses them.

    The status of an answer is ok, late (over the time budget), fallback (the model failed) or
    unreadable (the image). Unless it is ok, the boxes are those of the last ok frame, for at most
    eight frames and with decreasing scores.
    """
    from workbench.deployment import session
    from workbench.deployment.runtime import Runtime, load_bundle

    workspace = find_workspace()
    sources = _open_sources(workspace, src)
    checked = [_verify_bundle(workspace, name, key, signed=signed) for name in (bundle, *others)]
    opened = [
        load_bundle(each.folder, files=each.files, file=model, threads=threads) for each in checked
    ]
    runtime = Runtime(opened, budget_ms=budget_ms, score=score)
    names = [source.file for source in sources]
    drawer = session.AnswerDrawer(draw, files=names, classes=runtime.classes) if draw else None
    film = session.AnswerVideo(video, sources, runtime.classes) if video else None
    drawers = [one for one in (drawer, film) if one]
    try:
        with progress_bar("predict") as progress:
            summary = session.run_session(
                runtime, sources, output=output, draw=drawers, progress=progress
            )
    finally:
        if film:
            film.close()
    result: Json = {
        "bundles": [
            {
                "folder": str(each.folder),
                "digest": each.digest,
                "checked": source.how,
                "model": each.file,
                "release": source.release and source.release.model_dump(mode="json"),
            }
            for each, source in zip(opened, checked, strict=True)
        ],
        "simulated": any(each.simulated for each in opened),
        "budget_ms": budget_ms,
        "score": runtime.score,
        "output": str(output) if output else None,
        "drawn": str(draw) if draw else None,
        "video": str(video) if video else None,
        **summary.as_json(),
    }
    print_result(result, as_json=as_json, text=_predict_text(result))


_REFERENCES = ("models:", "sha256:")
"""A folder that is called like one of these is no way to put another model in its place."""


@dataclass(frozen=True)
class _CheckedBundle:
    """A bundle's folder, what it was checked by, and the bytes that were checked."""

    folder: Path
    how: str
    files: Mapping[str, bytes]
    release: SignedRelease | None = None


def _verify_bundle(
    workspace: Workspace, name: str, key: Path | None, *, signed: bool
) -> _CheckedBundle:
    """A bundle checked by its signature, else by its record, else by its manifest only."""
    from workbench.detection.bundles import read_files
    from workbench.records.references import resolve_reference
    from workbench.records.store import Store
    from workbench.release import publishing

    folder = Path(name)
    if name.startswith(_REFERENCES) or not folder.is_dir():
        ref = resolve_reference(workspace, name)
        if ref.startswith("release/"):
            if signed and name.startswith("models:"):
                _refuse_other_registry(workspace, name)
            return _signed_bundle(workspace, publishing.verify_release(workspace, ref, key))
        if not ref.startswith("bundle/"):
            raise ParameterError(f"{name} is not a bundle", where=ref)
        _refuse_unsigned(name, key, signed=signed)
        store = Store(workspace)
        files = {each: store.read_payload(ref, each) for each in store.payload_names(ref)}
        return _CheckedBundle(store.folder(ref) / "payload", "record", files)
    if (folder / _SIGNATURE_FILE).exists():
        return _signed_bundle(workspace, publishing.verify_released_folder(workspace, folder, key))
    _refuse_unsigned(name, key, signed=signed)
    info(f"{folder}: not signed; its files are only compared with its manifest")
    return _CheckedBundle(folder, "manifest", read_files(folder))


def _refuse_other_registry(workspace: Workspace, name: str) -> None:
    """Refuse a model about which MLflow, where it runs, says something else than the records."""
    from workbench import services

    if not services.status(workspace, ("mlflow",))["mlflow"].usable:
        return
    from workbench.release.registry import connect, registry_problems

    model = name.removeprefix("models:/").partition("@")[0].partition("/")[0]
    problems = registry_problems(workspace, connect(workspace), [model])
    if problems:
        raise VerificationError(
            "; ".join(problems),
            where=name,
            hint="Find out who changed it; `workbench doctor --rebuild-registry` puts it right",
            reason=Refusal.REGISTRY_DIFFERS,
        )


def _refuse_unsigned(name: str, key: Path | None, *, signed: bool) -> None:
    if signed or key is not None:
        option = "--signed" if signed else "--key"
        raise VerificationError(
            "this bundle is not signed",
            where=name,
            hint=f"Release it, or run without {option}",
            reason=Refusal.UNSIGNED,
        )


def _signed_bundle(workspace: Workspace, verified: VerifiedFolder) -> _CheckedBundle:
    for waiver in _waived(workspace, verified):
        info(f"{verified.folder}: {waiver}")
    release = verified.release
    if release is None:
        info(f"{verified.folder}: {_OLDER_SIGNATURE}")
    elif not release.promoted:
        info(f"{verified.folder}: its gates did not allow it to be champion ({release.verdict})")
    return _CheckedBundle(verified.folder, "signature", verified.contents, release)


def _open_sources(workspace: Workspace, src: str) -> list[InputFrame]:
    from workbench.deployment.session import frames_from_dataset, frames_from_path
    from workbench.records.dataset import load_dataset
    from workbench.records.references import resolve_dataset
    from workbench.records.store import Store

    path = Path(src)
    if path.exists():
        return frames_from_path(path)
    start = len("sha256:") if src.startswith("sha256:") else 0
    name, _, drive = src[start:].partition(":")
    try:
        ref = resolve_dataset(workspace, src[:start] + name)
    except RecordError:
        # A path that does not exist, rather than a name that is not known.
        if not drive and ("/" in src or path.suffix):
            return frames_from_path(path)
        raise
    return frames_from_dataset(workspace, load_dataset(Store(workspace), ref), drive or None)


def _predict_text(result: Json) -> str:
    statuses = ", ".join(f"{count} {status}" for status, count in result["statuses"].items())
    frames, boxes = counted(result["frames"], "frame"), counted(result["boxes"], "box", "boxes")
    lines = [f"{frames}, {boxes}: {statuses}"]
    if result["resumed"]:
        lines.append(f"{counted(result['resumed'], 'frame')} from the session before")
    if result["turned"]:
        lines.append(
            f"{counted(result['turned'], 'image')} refused for an EXIF rotation: save upright and "
            "without the tag"
        )
    times = result["latency_ms"]
    if times:
        lines.append(
            f"latency: median {times['median']:.1f} ms, p99 {times['p99']:.1f} ms, max "
            f"{times['max']:.1f} ms; {result['images_per_second']:.0f} images/s with decoding"
        )
    for entry in result["bundles"]:
        short = digest.shorten(entry["digest"])
        lines.append(f"{entry['model']} of bundle {short}, checked by {entry['checked']}")
    if result["simulated"]:
        lines.append("calibrated on simulated drives")
    lines += [f"{what}: {result[what]}" for what in ("output", "drawn", "video") if result[what]]
    return "\n".join(lines)


@click.command()
@click.argument("bundle")
@_key_option
@click.option("--model", help="Refuse a release of another model.")
@json_option
def verify(bundle: str, key: Path | None, model: str | None, as_json: bool) -> None:
    """Verify the signature and every file of a bundle or audit pack; say what it was released as.

    BUNDLE is the folder of a released bundle, an audit pack (.zip), or a release of this workspace:
    release/PREFIX, models:/NAME/VERSION or models:/NAME@ALIAS. A pack can also be verified by the
    verify.py in it, without the workbench.

    Exit status: 0 only if every file is there and unchanged, no other file is there, the signature
    is valid, and it names the model of --model.
    """
    from workbench.release import publishing

    workspace = find_workspace()
    folder = Path(bundle)
    if folder.is_file():
        _verify_pack(workspace, folder, key, model, as_json=as_json)
        return
    if bundle.startswith(_REFERENCES):
        release_ref = resolve_ref(workspace, bundle, ("release",))
        verified = publishing.verify_release(workspace, release_ref, key)
    elif folder.is_dir():
        verified = publishing.verify_released_folder(workspace, folder, key)
    elif bundle.startswith("release/"):
        verified = publishing.verify_release(workspace, bundle, key)
    else:
        raise VerificationError(
            "no such bundle folder",
            where=folder.absolute(),
            hint=f"Released bundles are in {workspace.root / 'releases'}",
        )
    release = verified.release
    if model is not None and (release is None or release.model != model):
        named = _OLDER_SIGNATURE if release is None else f"a release of {release.model}"
        raise VerificationError(f"expected a release of {model}, found {named}", where=bundle)
    waived = _waived(workspace, verified)
    result = {
        "verified": True,
        "waived": waived,
        "bundle": str(verified.folder),
        "key": verified.key,
        "signature": verified.signature,
        "signature_version": verified.version,
        "release": release and release.model_dump(mode="json"),
        "files": verified.files,
    }
    text = "\n".join(
        [
            f"verified: {verified.folder}",
            _OLDER_SIGNATURE
            if release is None
            else f"{release.model} version {release.version}, {release.verdict}"
            + ("" if release.promoted else ", not promoted"),
            *waived,
            *(f"  {digest.shorten(sha256)}  {name}" for name, sha256 in verified.files.items()),
            f"signed with key {digest.shorten(verified.key)}…; no file changed, missing or extra",
        ]
    )
    print_result(result, as_json=as_json, text=text)


def _waived(workspace: Workspace, verified: VerifiedFolder) -> list[str]:
    """The waivers of a verified release of this workspace, a line each."""
    from workbench.records.claims import read_waivers
    from workbench.records.model_types import Release
    from workbench.records.store import Store

    store = Store(workspace)
    return [
        str(waiver)
        for ref, waivers in read_waivers(store).items()
        if store.get(ref, Release).signature == verified.signature
        for waiver in waivers
    ]


def _verify_pack(
    workspace: Workspace, path: Path, key: Path | None, model: str | None, *, as_json: bool
) -> None:
    from workbench.release.pack import verify_pack

    report = verify_pack(workspace, path, key)
    if model is not None and report.summary.get("model") != model:
        named = report.summary.get("model") or "none"
        report.add("other-release", f"expected a release of {model}, found {named}")
    result: Json = {
        "verified": not report.findings,
        "pack": str(path),
        "findings": [{"reason": code, "message": text} for code, text in report.findings],
        "notes": report.notes,
        **report.summary,
    }
    lines = [f"REFUSED {code}: {text}" for code, text in report.findings]
    lines += [f"note: {note}" for note in report.notes]
    lines += [f"{name}: {value}" for name, value in report.summary.items()]
    verdict = "refused" if report.findings else "verified"
    print_result(result, as_json=as_json, text="\n".join([*lines, f"{verdict}: {path}"]))
    if report.findings:
        sys.exit(1)


@click.command()
@click.argument("model")
@click.option("--reason", required=True, help="Why, in a sentence.")
@click.option("--by", help="Who decides.  [default: the current user]")
@json_option
def rollback(model: str, reason: str, by: str | None, as_json: bool) -> None:
    """Withdraw the champion of MODEL: the release that was champion before it is champion again.

    Each call goes back one release further. The signed rollback is kept with its author and reason.
    """
    from workbench import services
    from workbench.pipeline.promote import current_user
    from workbench.records.store import Store
    from workbench.release.publishing import roll_back

    workspace = find_workspace()
    done = roll_back(Store(workspace), model, by=by or current_user(), reason=reason)
    mirrored = services.status(workspace, ("mlflow",))["mlflow"].usable
    if mirrored:
        from workbench.release import registry

        registry.point_aliases(workspace, registry.connect(workspace), model)
    else:
        info("MLflow is not running; `workbench doctor --rebuild-registry` updates its aliases")
    result: Json = {
        "model": model,
        "champion": {"version": done.champion.version, "release": done.champion.ref},
        "withdrawn": {"version": done.withdrawn.version, "release": done.withdrawn.ref},
        "rollback": done.ref,
        "mirrored": mirrored,
    }
    text = (
        f"{model}@champion is version {done.champion.version} again; "
        f"version {done.withdrawn.version} was withdrawn"
    )
    print_result(result, as_json=as_json, text=text)


@click.command()
@click.argument("release")
@click.argument("gate")
@click.option("--reason", required=True, help="Why, in a sentence.")
@click.option(
    "--until",
    type=click.DateTime(["%Y-%m-%d"]),
    required=True,
    metavar="DATE",
    help="Last day, YYYY-MM-DD, at most 180 days ahead.",
)
@click.option("--by", help="Who answers for it.  [default: the current user]")
@json_option
def waive(
    release: str, gate: str, reason: str, until: datetime, by: str | None, as_json: bool
) -> None:
    """Let RELEASE be sent to vehicles although GATE did not pass, until a day.

    The waiver is signed and shown wherever the release is. It never makes a champion.
    """
    from workbench.pipeline.promote import current_user
    from workbench.records.store import Store
    from workbench.release import claims

    workspace = find_workspace()
    ref = resolve_ref(workspace, release, ("release",))
    claim, waiver = claims.waive(
        Store(workspace), ref, gate, by=by or current_user(), reason=reason, until=until.date()
    )
    result: Json = {"claim": claim, "release": ref, **waiver.model_dump()}
    print_result(result, as_json=as_json, text=f"{short_ref(ref)}: {waiver}")


@click.command()
@click.argument("reference")
@click.option("--forward", is_flag=True, help="Show what was made from it instead.")
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML page here."
)
@click.option(
    "--svg", type=click.Path(dir_okay=False, path_type=Path), help="Write an SVG image here."
)
@json_option
def lineage(
    reference: str, forward: bool, html: Path | None, svg: Path | None, as_json: bool
) -> None:
    """Show what REFERENCE was made from, down to drives and annotators.

    REFERENCE is sha256:DIGEST, KIND/PREFIX, a dataset (NAME or NAME@N), models:/NAME/VERSION,
    models:/NAME@ALIAS, frame/DIGEST, annotator/NAME, or a file of a record (such as a bundle's
    model), by digest or path.
    """
    from workbench.pipeline.lineage.graph import graph_text, trace_reference
    from workbench.pipeline.lineage.page import show

    graph = trace_reference(find_workspace(), reference, forward=forward)
    page = show(graph) if html or svg else None
    if page and html:
        page.write_html(html)
        info(f"wrote {html}")
    if page and svg:
        page.write_svg(svg)
        info(f"wrote {svg}")
    print_result(graph.as_json(), as_json=as_json, text=graph_text(graph))


class _ReproduceProgress:
    """A line for each step on standard error, and a progress bar while it runs."""

    def note(self, message: str) -> None:
        info(message)

    @contextmanager
    def step_progress(self, step: str) -> Iterator[Progress]:
        info(f"  → {step}")
        with progress_bar(f"    {step}") as progress:
            yield progress


@click.command()
@click.argument("model")
@click.option(
    "-o",
    "output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Empty folder to rebuild in.  [default: a new one in .workbench/reproduce]",
)
@json_option
def reproduce(model: str, output: Path | None, as_json: bool) -> None:
    """Rebuild MODEL from its lineage alone, in an empty folder, and compare digests.

    MODEL is models:/NAME/VERSION, or a reference to a release, bundle, checkpoint, gate report or
    dataset that a pipeline made. Raw frames, label sets and the champion of comparisons are copied,
    not rebuilt. No server is started. A stopped command continues when it is run again.

    Exit status: 0 all digests are equal, 3 one differs, 130 cancelled, any other a failure.
    """
    from workbench.pipeline.reproduction import rebuild, report
    from workbench.pipeline.reproduction.ancestry import trace_ancestry
    from workbench.records.references import resolve_reference
    from workbench.records.store import Store

    workspace = find_workspace()
    target = resolve_reference(workspace, model)
    ancestry = trace_ancestry(Store(workspace), target)
    folder = rebuild.choose_folder(workspace, target, output)
    info(f"{short_ref(target)}: {counted(len(ancestry.steps), 'step')}, in {folder}")
    try:
        result = rebuild.reproduce(workspace, ancestry, folder, _ReproduceProgress())
    except KeyboardInterrupt:
        info("stopped; run the same command to continue")
        sys.exit(_EXIT_CANCELLED)
    text = report.report_text(result)
    print_result(result.model_dump(mode="json"), as_json=as_json, text=text)
    if as_json:
        info(text)
    sys.exit({"reproduced": 0, "differs": _EXIT_DIFFERS, "failed": 1}[result.status])

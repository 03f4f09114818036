"""`workbench predict`, `verify`, `lineage` and `reproduce`: use a model and prove its origin."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.cli.common import Progress, info, json_option, print_result, progress_bar
from workbench.core import digest
from workbench.core.errors import ParameterError, VerificationError
from workbench.core.workspace import Workspace, find_workspace

if TYPE_CHECKING:
    from workbench.deployment.session import InputFrame


_SIGNATURE_FILE = "signature"


@click.command()
@click.argument("bundle")
@click.argument("src")
@click.option(
    "--with", "others", multiple=True, metavar="BUNDLE", help="Fuse with this one; repeatable."
)
@click.option(
    "--model",
    default="int8.cpu.onnx",
    show_default=True,
    help="Which of the bundle's files answers.",
)
@click.option("--budget-ms", type=float, help="Later than this is late, and the rule answers.")
@click.option("--score", type=click.FloatRange(0, 1), help="Leave out boxes below.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Answers as JSON lines; a session that died goes on where it stopped.",
)
@click.option(
    "--draw",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write every frame with its boxes into this folder.",
)
@click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Public key of whoever released it (PEM). Default: this workbench's own.",
)
@click.option("--signed", is_flag=True, help="Refuse a bundle that nobody signed.")
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
    key: Path | None,
    signed: bool,
    as_json: bool,
) -> None:
    """Run a bundle on images, as a car would: checked first, an answer for every frame.

    BUNDLE is a bundle's folder, bundle/PREFIX, release/PREFIX or models:/NAME@ALIAS. SRC is an
    image, a folder of images, a dataset (NAME or NAME@N) or one drive of it (NAME@N:DRIVE).

    Each answer is ok, late, fallback or unreadable; all but ok are given by a rule that holds the
    last known boxes for a moment. See docs/how-to/export.md.
    """
    from workbench.deployment import session
    from workbench.deployment.runtime import Runtime, load_bundle

    workspace = find_workspace()
    sources = _open_sources(workspace, src)
    checked = [_verify_bundle(workspace, name, key, signed=signed) for name in (bundle, *others)]
    opened = [load_bundle(folder, file=model, threads=threads) for folder, _ in checked]
    runtime = Runtime(opened, budget_ms=budget_ms, score=score)
    drawer = session.AnswerDrawer(draw) if draw else None
    with progress_bar("predict") as progress:
        summary = session.run_session(
            runtime, sources, output=output, draw=drawer, progress=progress
        )
    result: dict[str, Any] = {
        "bundles": [
            {"folder": str(each.folder), "digest": each.digest, "checked": how, "model": each.file}
            for each, (_, how) in zip(opened, checked, strict=True)
        ],
        "simulated": any(each.simulated for each in opened),
        "budget_ms": budget_ms,
        "output": str(output) if output else None,
        "drawn": str(draw) if draw else None,
        **summary.as_json(),
    }
    print_result(result, as_json=as_json, text=_predict_text(result))


def _verify_bundle(
    workspace: Workspace, name: str, key: Path | None, *, signed: bool
) -> tuple[Path, str]:
    """The folder of a bundle and what was checked about it before anything of it is loaded."""
    from workbench.records.store import Store
    from workbench.release import publishing, signing

    folder = Path(name)
    if not folder.is_dir():
        from workbench.records import references

        ref = references.resolve_reference(workspace, name)
        if ref.startswith("release/"):
            return publishing.verify_release(workspace, ref, key).folder, "signature"
        if not ref.startswith("bundle/"):
            raise ParameterError(f"{name} is no bundle", where=ref)
        folder = Store(workspace).folder(ref) / "payload"
    if (folder / _SIGNATURE_FILE).exists():
        signing.verify_folder(folder, key or signing.public_key(workspace))
        return folder, "signature"
    if signed:
        raise VerificationError(
            "nobody signed this bundle", where=folder, hint="Release it, or leave out --signed"
        )
    info(f"{folder}: not signed; its files are checked against its own manifest only")
    return folder, "manifest"


def _open_sources(workspace: Workspace, src: str) -> list[InputFrame]:
    from workbench.deployment.session import frames_from_dataset, frames_from_path

    path = Path(src)
    if path.exists() or "/" in src or path.suffix:
        return frames_from_path(path)
    from workbench.records import dataset as datasets
    from workbench.records import references
    from workbench.records.store import Store

    name, _, drive = src.partition(":")
    dataset = datasets.load_dataset(Store(workspace), references.resolve_dataset(workspace, name))
    return frames_from_dataset(workspace, dataset, drive or None)


def _predict_text(result: dict[str, Any]) -> str:
    statuses = ", ".join(f"{count} {status}" for status, count in result["statuses"].items())
    lines = [f"{result['frames']} frames, {result['boxes']} boxes: {statuses}"]
    if result["resumed"]:
        lines.append(f"{result['resumed']} of them were answered before")
    times = result["latency_ms"]
    if times:
        lines.append(
            f"median {times['median']:.1f} ms, p99 {times['p99']:.1f} ms, longest "
            f"{times['max']:.1f} ms; {result['images_per_second']:.0f} images/s with decoding"
        )
    for entry in result["bundles"]:
        short = digest.shorten(entry["digest"])
        lines.append(f"{entry['model']} of bundle {short}, checked by {entry['checked']}")
    if result["simulated"]:
        lines.append("calibrated on simulated drives")
    lines += [f"{what}: {result[what]}" for what in ("output", "drawn") if result[what]]
    return "\n".join(lines)


# ---- ``workbench verify``: is this bundle, to the byte, what was released?


@click.command()
@click.argument("bundle")
@click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Public key of whoever released it (PEM). Default: this workbench's own.",
)
@json_option
def verify(bundle: str, key: Path | None, as_json: bool) -> None:
    """Check a signed bundle, to the byte.

    BUNDLE is a released bundle's folder, or release/PREFIX for one that was released here. The
    exit status is 0 only if every file is there, unchanged, with none beside them, and signed
    with the key.
    """
    from workbench.release import publishing, signing

    workspace = find_workspace()
    folder = Path(bundle)
    if folder.is_dir():
        held = signing.verify_folder(folder, key or signing.public_key(workspace))
    elif bundle.startswith("release/"):
        held = publishing.verify_release(workspace, bundle, key)
    else:
        raise VerificationError(
            "no such bundle folder",
            where=folder.absolute(),
            hint=f"Released bundles lie below {workspace.root / 'releases'}",
        )
    result = {
        "verified": True,
        "bundle": str(held.folder),
        "key": held.key,
        "signature": held.signature,
        "files": held.files,
    }
    text = "\n".join(
        [
            f"verified: {held.folder}",
            *(f"  {digest.shorten(sha256)}  {name}" for name, sha256 in held.files.items()),
            f"signed with the key {digest.shorten(held.key)}…; nothing changed, missing or extra",
        ]
    )
    print_result(result, as_json=as_json, text=text)


# ---- ``lineage``: what anything came from, and what was made of it.


@click.command()
@click.argument("reference")
@click.option("--forward", is_flag=True, help="What was made of it, instead of what it came from.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page here.")
@click.option(
    "--svg", type=click.Path(dir_okay=False, path_type=Path), help="Write a picture here."
)
@json_option
def lineage(
    reference: str, forward: bool, html: Path | None, svg: Path | None, as_json: bool
) -> None:
    """Show what REFERENCE came from, down to drives and annotators.

    REFERENCE is sha256:DIGEST, KIND/PREFIX, NAME or NAME@N of a dataset, models:/NAME/VERSION,
    models:/NAME@ALIAS, frame/DIGEST, annotator/NAME, or a file of a record, such as the model of a
    bundle: by its digest or as a path.
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


# ---- ``reproduce``: rebuild a model from its lineage and compare, digest for digest.


_EXIT_DIFFERS = 3
_EXIT_CANCELLED = 130


class _ReproduceProgress:
    """A line a step on standard error, and a bar while one is at work."""

    def say(self, message: str) -> None:
        info(message)

    @contextmanager
    def following(self, step: str) -> Iterator[Progress]:
        info(f"  → {step}")
        with progress_bar(f"    {step}") as progress:
            yield progress


@click.command()
@click.argument("model")
@click.option(
    "-o",
    "output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Clean folder to rebuild in. Default: a fresh one below .workbench/reproduce.",
)
@json_option
def reproduce(model: str, output: Path | None, as_json: bool) -> None:
    """Rebuild MODEL from its lineage alone, in a clean folder, and compare digests.

    MODEL is models:/NAME/VERSION, or any reference to a release, bundle, checkpoint, gate report
    or dataset that a pipeline made. Raw frames, label sets and the champion compared with are
    copied, never rebuilt; no server is started and nobody is asked. Stopped half-way, the same
    command goes on where it was.

    Exit status: 0 every digest is the same, 3 one differs, anything else a failure.
    """
    from workbench.pipeline.reproduction import ancestry as reproduction
    from workbench.pipeline.reproduction import rebuild, report
    from workbench.records import references
    from workbench.records.store import Store

    workspace = find_workspace()
    target = references.resolve_reference(workspace, model)
    ancestry = reproduction.trace_ancestry(Store(workspace), target)
    folder = rebuild.choose_folder(workspace, target, output)
    info(f"{target[: target.index('/') + 13]}: {len(ancestry.steps)} steps, in {folder}")
    try:
        made = rebuild.reproduce(workspace, ancestry, folder, _ReproduceProgress())
    except KeyboardInterrupt:
        info("stopped; the same command goes on from here")
        sys.exit(_EXIT_CANCELLED)
    text = report.report_text(made)
    print_result(made.model_dump(mode="json"), as_json=as_json, text=text)
    if as_json:
        info(text)
    sys.exit({"reproduced": 0, "differs": _EXIT_DIFFERS, "failed": 1}[made.status])

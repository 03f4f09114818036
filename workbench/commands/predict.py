"""``workbench predict``: what does this bundle see, and would it have been in time?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench import digest, workspace
from workbench.commands.common import emit, json_option, progress_bar, say
from workbench.errors import ParameterError, VerificationError
from workbench.workspace import Workspace

if TYPE_CHECKING:
    from workbench.deployment.sources import Source

_SIGNATURE = "signature"


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
    last known boxes for a moment. See docs/export.md.
    """
    from workbench.deployment import pictures, session
    from workbench.deployment.runtime import Runtime, open_bundle

    place = workspace.find()
    sources = _sources(place, src)
    checked = [_checked(place, name, key, signed=signed) for name in (bundle, *others)]
    opened = [open_bundle(folder, file=model, threads=threads) for folder, _ in checked]
    runtime = Runtime(opened, budget_ms=budget_ms, score=score)
    drawer = pictures.Drawer(draw, runtime.classes) if draw else None
    with progress_bar("predict") as progress:
        summary = session.run(runtime, sources, output=output, draw=drawer, progress=progress)
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
    emit(result, as_json=as_json, text=_text(result))


def _checked(place: Workspace, name: str, key: Path | None, *, signed: bool) -> tuple[Path, str]:
    """The folder of a bundle and what was checked about it before anything of it is loaded."""
    from workbench.records.store import Store
    from workbench.release import keys, release, signing

    folder = Path(name)
    if not folder.is_dir():
        from workbench.pipeline.lineage import references

        ref = references.resolve(place, name)
        if ref.startswith("release/"):
            return release.verify_release(place, ref, key).folder, "signature"
        if not ref.startswith("bundle/"):
            raise ParameterError(f"{name} is no bundle", where=ref)
        folder = Store(place).folder(ref) / "payload"
    if (folder / _SIGNATURE).exists():
        signing.verify(folder, key or keys.public_key(place))
        return folder, "signature"
    if signed:
        raise VerificationError(
            "nobody signed this bundle", where=folder, hint="Release it, or leave out --signed"
        )
    say(f"{folder}: not signed; its files are checked against its own manifest only")
    return folder, "manifest"


def _sources(place: Workspace, src: str) -> list[Source]:
    from workbench.deployment.sources import from_dataset, from_path

    path = Path(src)
    if path.exists() or "/" in src or path.suffix:
        return from_path(path)
    from workbench.data import versions
    from workbench.records import dataset as datasets
    from workbench.records.store import Store

    name, _, drive = src.partition(":")
    dataset = datasets.load(Store(place), versions.resolve(place, name))
    return from_dataset(place, dataset, drive or None)


def _text(result: dict[str, Any]) -> str:
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
        short = digest.short(entry["digest"])
        lines.append(f"{entry['model']} of bundle {short}, checked by {entry['checked']}")
    if result["simulated"]:
        lines.append("calibrated on simulated drives")
    lines += [f"{what}: {result[what]}" for what in ("output", "drawn") if result[what]]
    return "\n".join(lines)

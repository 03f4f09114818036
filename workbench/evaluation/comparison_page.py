"""A comparison as one HTML file that a product owner can read, pictures included.

No script, no font and no image comes from elsewhere, so that the page can be mailed and kept.
"""

from __future__ import annotations

import base64
import html
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from workbench.core.text import counted
from workbench.core.workspace import Workspace, write_atomic
from workbench.data.drawing import FOUND, MISSED, draw_box_on_image
from workbench.data.slices import describe_conditions
from workbench.detection.preprocessing import load_frame
from workbench.evaluation.results import ALL_CLASSES, Estimate, MetricName, SliceMetrics

if TYPE_CHECKING:
    from workbench.evaluation.comparison import Comparison, FlippedFrame

__all__ = ()

_COLOURS = {"better": FOUND, "worse": MISSED, "unknown": "#777777"}
_WIDTH = 640
"""Of a picture, in pixels."""
_JPEG_QUALITY = 80
_METRICS: tuple[tuple[MetricName, str], ...] = (
    ("recall", "found"),
    ("precision", "right"),
    ("ap50", "AP50"),
)

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#222}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ddd;white-space:nowrap}
th{font-weight:600}td.n{text-align:right;font-variant-numeric:tabular-nums}
.note{color:#555}.mark{font-weight:600}.sim{background:#E69F00;color:#000;padding:0 .5rem}
.tiles{display:flex;gap:1rem;flex-wrap:wrap;margin:1rem 0}
.tile{border:1px solid #ddd;border-radius:.4rem;padding:.6rem 1rem;min-width:9rem}
.tile b{display:block;font-size:1.4rem}
.shots{display:grid;grid-template-columns:repeat(auto-fill,minmax(21rem,1fr));gap:1rem}
figure{margin:0}figure img{width:100%;display:block}figcaption{font-size:.85rem;color:#555}
svg{display:block}@media print{.shots{grid-template-columns:1fr 1fr}figure{break-inside:avoid}}
"""


def write_page(
    comparison: Comparison, path: Path, workspace: Workspace, *, pictures: int = 12
) -> Path:
    """Write the page; see `Comparison.report`."""
    write_atomic(path, _page(comparison, workspace, pictures).encode())
    return path


def _page(comparison: Comparison, workspace: Workspace, pictures: int) -> str:
    first, second = comparison.first.metrics, comparison.second.metrics
    verdicts = comparison.verdicts("recall")
    flipped = comparison.flipped()
    whole = first.at()
    simulated = ' <span class="sim">simulated or replayed</span>' if first.simulated else ""
    level = f"{first.settings.confidence:.0%}"
    drives = counted(whole.drives, "drive")
    body = [
        f"<h1>{_e(second.name)} compared with {_e(first.name)}{simulated}</h1>",
        f'<p class="note">{counted(whole.boxes, "object")} on {counted(whole.frames, "frame")} of'
        f" {drives}, the same for both. A box counts from a confidence of"
        f" {second.settings.threshold:.3g} on{_other_threshold(comparison)}.</p>",
        f"<p>{_headline(comparison, verdicts)}</p>",
        _tiles(comparison, flipped),
        "<h2>By slice</h2>",
        f'<p class="note">Bars: {_e(second.name)} minus {_e(first.name)}, with {level} intervals'
        f" over drives; to the right is better. The word on the left is about objects found. It"
        f" takes into account that {counted(len(verdicts), 'slice')} were looked at (Holm's"
        f" method): the chance that any “better” is wrong is at most"
        f" {1 - first.settings.confidence:.0%}. Fewer than 10 drives stay unknown.</p>",
        _table(comparison, verdicts),
        "<h2>Frames that changed</h2>",
        _legend(first.name, second.name),
        _pictures(flipped, workspace, pictures),
        "<h2>What the words mean</h2>",
        '<p class="note"><b>Found</b> (recall): share of labelled objects with a box of their class'
        " that overlaps by half (IoU 0.5). <b>Right</b> (precision): share of boxes that mark such"
        " an object. <b>AP50</b>: average precision over all confidences, mean over classes."
        f" Intervals resample whole drives: {_e(whole.method)}.</p>",
    ]
    title = _e(f"{second.name} compared with {first.name}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _other_threshold(comparison: Comparison) -> str:
    first = comparison.first.metrics.settings.threshold
    same = first == comparison.second.metrics.settings.threshold
    return "" if same else f" ({_e(comparison.first.name)}: {first:.3g})"


def _headline(comparison: Comparison, verdicts: dict[str, str]) -> str:
    """What can be said, in one or two sentences."""
    name = _e(comparison.second.name)
    words = {
        "better": "finds more",
        "worse": "finds fewer",
        "unknown": "shows no proven difference in what it finds",
    }
    change = comparison.difference("recall").estimate
    said = f"Over all, <b>{name} {words[verdicts.get('all', 'unknown')]}</b>"
    said += f" ({_points(change)} of the objects)." if change.value is not None else "."
    for word in ("better", "worse"):
        names = [part for part, verdict in verdicts.items() if verdict == word and part != "all"]
        if names:
            said += f" Clearly {word} on {_e(', '.join(names))}."
    unknown = [part for part, verdict in verdicts.items() if verdict == "unknown"]
    if unknown:
        said += f" Unknown on {_e(', '.join(unknown))}."
    return said


def _points(change: Estimate) -> str:
    text = f"{100 * (change.value or 0):+.1f} points"
    if change.low is not None and change.high is not None:
        text += f", {100 * change.low:+.1f} to {100 * change.high:+.1f}"
    return text


def _tiles(comparison: Comparison, flipped: tuple[FlippedFrame, ...]) -> str:
    first, second = comparison.first.metrics.at(), comparison.second.metrics.at()
    tiles = [
        f'<div class="tile">{label}<b>{_share(getattr(first, metric))} →'
        f" {_share(getattr(second, metric))}</b></div>"
        for metric, label in _METRICS
    ]
    for label, count in (
        ("objects gained", sum(len(one.gained) for one in flipped)),
        ("objects lost", sum(len(one.lost) for one in flipped)),
        ("frames changed", len(flipped)),
    ):
        tiles.append(f'<div class="tile">{label}<b>{count:,}</b></div>')
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _share(estimate: Estimate) -> str:
    return "-" if estimate.value is None else f"{estimate.value:.1%}"


def _table(comparison: Comparison, verdicts: dict[str, str]) -> str:
    rows = [
        row
        for row in comparison.first.metrics.rows
        if row.cls == ALL_CLASSES and row.slice in verdicts
    ]
    changes = {
        (row.slice, metric): comparison.difference(metric, row.slice).estimate
        for row in rows
        for metric, _ in _METRICS
    }
    ends = [abs(x) for one in changes.values() for x in (one.low, one.high, one.value) if x]
    reach = max([0.02, *ends])
    head = "".join(f"<th>{label}</th>" for _, label in _METRICS)
    lines = [
        f"<tr><th>slice</th><th>verdict</th><th>objects</th><th>drives</th>{head}</tr>",
        *(_row(row, verdicts[row.slice], changes, reach) for row in rows),
    ]
    scale = f'<p class="note">Bars reach from {-reach:+.0%} to {reach:+.0%}.</p>'
    return f"<table>{''.join(lines)}</table>{scale}"


def _row(
    row: SliceMetrics,
    verdict: str,
    changes: dict[tuple[str, MetricName], Estimate],
    reach: float,
) -> str:
    cells = "".join(
        f"<td>{_bar(changes[row.slice, metric], reach, usable=row.usable)}</td>"
        for metric, _ in _METRICS
    )
    return (
        f'<tr><td>{_e(row.slice)}</td><td class="mark" style="color:{_COLOURS[verdict]}">{verdict}'
        f'</td><td class="n">{row.boxes:,}</td><td class="n">{row.drives_with_boxes:,}</td>{cells}'
        "</tr>"
    )


def _bar(change: Estimate, reach: float, *, usable: bool) -> str:
    """A difference with its interval around a line at zero, as SVG, with the number beside it."""
    if change.value is None:
        return "-"
    width, height = 130.0, 18.0

    def x(value: float) -> float:
        return width / 2 * (1 + max(-1.0, min(1.0, value / reach)))

    colour, fill = "#777777", "#777777"
    if change.low is not None and change.high is not None and usable:
        colour = FOUND if change.low > 0 else MISSED if change.high < 0 else colour
        fill = colour
    parts = [f'<line x1="{width / 2}" x2="{width / 2}" y1="0" y2="{height}" stroke="#bbb"/>']
    if change.low is not None and change.high is not None:
        dash = "" if usable else ' stroke-dasharray="2 2"'
        parts.append(
            f'<line x1="{x(change.low):.1f}" x2="{x(change.high):.1f}" y1="9" y2="9"'
            f' stroke="{colour}" stroke-width="2.5"{dash}/>'
        )
    parts.append(
        f'<circle cx="{x(change.value):.1f}" cy="9" r="4" fill="{fill if usable else "#fff"}"'
        f' stroke="{colour}"/>'
    )
    number = f"{100 * change.value:+.1f}" if math.isfinite(change.value) else "-"
    title = f"<title>{_e(str(change))}</title>"
    return (
        f'<span style="display:flex;gap:.5rem;align-items:center"><svg width="{width:.0f}"'
        f' height="{height:.0f}" role="img">{title}{"".join(parts)}</svg>{number}</span>'
    )


def _legend(first: str, second: str) -> str:
    return (
        f'<p><span style="color:{MISSED}">■</span> lost: only {_e(first)} finds it ·'
        f' <span style="color:{FOUND}">■</span> gained: only {_e(second)} finds it.'
        " Most lost first, then most gained; one frame of a drive.</p>"
    )


def _pictures(flipped: tuple[FlippedFrame, ...], workspace: Workspace, count: int) -> str:
    chosen: dict[str, FlippedFrame] = {}
    for one in flipped:
        chosen.setdefault(one.frame.drive, one)
    shown = list(chosen.values())
    # One half shows the most lost objects, the other the most gained.
    half = shown[: math.ceil(count / 2)]
    gained = sorted((one for one in shown if one not in half), key=lambda one: -len(one.gained))
    figures = [_figure(one, workspace) for one in (*half, *gained)[:count]]
    if not figures:
        return "<p>No frame changed.</p>"
    more = len(flipped) - len(figures)
    rest = f'<p class="note">{counted(more, "more frame")} changed.</p>' if more else ""
    return f'<div class="shots">{"".join(figures)}</div>{rest}'


def _figure(one: FlippedFrame, workspace: Workspace) -> str:
    image = Image.fromarray(load_frame(workspace, one.frame))
    scale = _WIDTH / image.width
    image = image.resize((_WIDTH, max(1, round(image.height * scale))))
    for labels, colour in ((one.gained, FOUND), (one.lost, MISSED)):
        for label in labels:
            box = [scale * edge for edge in label.box.xyxy]
            draw_box_on_image(image, box, colour, width=2, text=label.cls, font_size=11)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_JPEG_QUALITY)
    data = base64.b64encode(stream.getvalue()).decode()
    name = f"{one.frame.drive} #{one.frame.index}"
    caption = (
        f"{name}, {describe_conditions(one.frame)}: {len(one.lost)} lost, {len(one.gained)} gained"
    )
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{_e(caption)}">'
        f"<figcaption>{_e(caption)}</figcaption></figure>"
    )


def _e(value: object) -> str:
    return html.escape(str(value))

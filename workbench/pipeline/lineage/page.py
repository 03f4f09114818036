"""A lineage graph to look at: one SVG, or one HTML page around it that opens from disk.

The page holds its own style, script and data and asks nothing of any server; its policy lets
nothing else run. Notebooks and environments, which every run has, are told with their run instead
of drawn, and an edge that only repeats the way over a run is left out.
"""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
from collections import Counter
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from workbench import workspace
from workbench.pipeline.lineage import layout
from workbench.pipeline.lineage.tracing import Graph, text_of, without_short_cuts

Json = dict[str, Any]
Edge = tuple[str, str]

_FOLDED = ("notebook", "environment")
_SMALL = ("drive", "frame", "label")
_WIDE, _NARROW = 204.0, 164.0
_MARGIN = 24.0
_LONGEST_TITLE = 22
_IN_A_CELL_PX = 560

_MEANINGS = {
    "data": "data and labels",
    "choice": "selections and batches",
    "run": "runs",
    "model": "models",
    "gates": "gates",
    "release": "releases",
    "code": "code and environment",
}
_FAMILY = {
    **dict.fromkeys(("drive", "frame", "label", "annotator", "dataset", "withdrawal"), "data"),
    **dict.fromkeys(("selection", "batch", "agreement", "calibration"), "choice"),
    **dict.fromkeys(("checkpoint", "bundle"), "model"),
    **dict.fromkeys(("notebook", "environment", "receipt", "step"), "code"),
    "run": "run",
    "gates": "gates",
    "release": "release",
}


class Page:
    """The picture of a graph. The last line of a notebook's cell shows it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes, self.edges = _drawn(graph)

    @cached_property
    def svg(self) -> str:
        """The picture alone; a node's tooltip tells it in one line."""
        return self._svg(style=_asset("page.css"))

    @cached_property
    def html(self) -> str:
        """The picture with a search, details of what is clicked, and its ways back and forth."""
        script = _asset("page.js")
        own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{own}'"
        root = self.graph.nodes.get(self.graph.root, {})
        kind, name = root.get("kind", ""), _title(root)
        title = f"{kind} {name if name != kind else str(root.get('digest', ''))[:12]}".strip()
        what = "What was made of" if self.graph.forward else "What went into"
        data = {"nodes": self.nodes, "edges": sorted(self.edges), "root": self.graph.root}
        return (
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            f"<title>Lineage of {html.escape(title)}</title>"
            f"<style>{_asset('page.css')}</style></head><body>"
            f"<header><h1><small>{what}</small> {html.escape(title)}</h1>"
            f"<p>{self._counts()}</p>{_legend(self.nodes)}"
            "<input id='search' type='search' placeholder='find a name, step or digest'>"
            "<button id='fit' type='button'>whole picture</button></header>"
            f"<main><div id='stage'>{self._svg()}</div><aside id='details'></aside></main>"
            f"<script id='data' type='application/json'>{_inert(data)}</script>"
            f"<script>{script}</script></body></html>"
        )

    def write_html(self, path: Path) -> None:
        workspace.write_atomic(path, self.html.encode())

    def write_svg(self, path: Path) -> None:
        workspace.write_atomic(path, self.svg.encode())

    def _repr_html_(self) -> str:
        """In a frame of its own, so that neither the notebook's style nor its script can mix."""
        page = html.escape(self.html, quote=True)
        return (
            f"<iframe sandbox='allow-scripts' srcdoc=\"{page}\" title='lineage' "
            f"style='width:100%;height:{_IN_A_CELL_PX}px;border:1px solid #d8dde4'></iframe>"
        )

    def _repr_svg_(self) -> str:
        return self.svg

    def _svg(self, style: str = "") -> str:
        widths = {name: _width(node) for name, node in self.nodes.items()}
        placed = layout.place(widths, self.edges)
        width, height = placed.width + 2 * _MARGIN, placed.height + 2 * _MARGIN
        edges = "".join(
            f"<path data-from='{_quoted(a)}' data-to='{_quoted(b)}' d='{_curve(points)}'/>"
            for (a, b), points in placed.paths.items()
        )
        nodes = "".join(
            _box(name, self.nodes[name], at, root=name == self.graph.root)
            for name, at in placed.at.items()
        )
        own = f"<style>{style}</style>" if style else ""
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' class='lineage' role='img' "
            f"aria-label='lineage' viewBox='0 0 {width:.0f} {height:.0f}' "
            f"width='{width:.0f}' height='{height:.0f}'>{own}"
            "<defs><marker id='tip' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' "
            "markerHeight='7' orient='auto'><path d='M0 0 8 4 0 8z'/></marker></defs>"
            f"<g id='all' transform='translate({_MARGIN:.0f} {_MARGIN:.0f})'>"
            f"<g class='edges'>{edges}</g><g class='nodes'>{nodes}</g></g></svg>"
        )

    def _counts(self) -> str:
        counts = Counter(node["kind"] for node in self.graph.nodes.values())
        return html.escape(" · ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))


def _drawn(graph: Graph) -> tuple[dict[str, Json], set[Edge]]:
    """Nodes and edges of the picture: what is folded stands in ``with`` of the run it served."""
    folded = {
        name for name, node in graph.nodes.items() if node["kind"] in _FOLDED and name != graph.root
    }
    nodes = {name: dict(node) for name, node in graph.nodes.items() if name not in folded}
    for start, end in sorted(graph.edges):
        if start in folded and end in nodes:
            nodes[end].setdefault("with", []).append(graph.nodes[start])
    edges = without_short_cuts(graph)
    return nodes, {(a, b) for a, b in edges if a in nodes and b in nodes}


def _width(node: Json) -> float:
    return _NARROW if node["kind"] in _SMALL else _WIDE


def _box(name: str, node: Json, at: tuple[float, float], *, root: bool) -> str:
    width, height = _width(node), layout.TALL
    x, y = at[0] - width / 2, at[1] - height / 2
    kind = node["kind"]
    classes = ["node", f"of-{_FAMILY.get(kind, 'code')}", *(["root"] if root else [])]
    if node.get("missing") or node.get("damaged"):
        classes.append("bad")
    if kind == "gates":
        classes.append("passed" if node.get("verdict") == "PASS" else "refused")
    lines = (
        f"<text class='title' x='14' y='20'>{html.escape(_title(node))}</text>"
        f"<text class='facts' x='14' y='36'>{html.escape(_facts(node))}</text>"
    )
    tip = html.escape(" ".join(text_of(node).split()))
    return (
        f"<g class='{' '.join(classes)}' data-id='{_quoted(name)}' tabindex='0' "
        f"transform='translate({x:.1f} {y:.1f})'><title>{tip}</title>"
        f"<rect class='card' width='{width:.0f}' height='{height:.0f}' rx='6'/>"
        f"<rect class='stripe' width='5' height='{height:.0f}' rx='2'/>{lines}</g>"
    )


def _title(node: Json) -> str:
    kind = node.get("kind", "")
    count = node.get("count", node.get("labels") if kind == "label" else None)
    if count is not None:
        return _short(f"{count} {kind}{'' if count == 1 else 's'}")
    for key in ("name", "step", "model", "verdict"):
        if node.get(key):
            return _short(str(node[key]))
    return kind if node.get("name") is None else ""


def _facts(node: Json) -> str:
    kind = "" if node["kind"] in _title(node) else node["kind"]
    words = [kind, node.get("origin", ""), str(node.get("digest", ""))[:10]]
    if "count" in node or node["kind"] == "annotator":
        words.pop()  # that of the dataset or label set, which stands beside it
    if node.get("missing"):
        words.append("missing")
    if node.get("damaged"):
        words.append("damaged")
    if node.get("simulated"):
        words.append("simulated")
    return " · ".join(word for word in words if word)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TITLE else f"{text[: _LONGEST_TITLE - 1]}…"


def _curve(points: tuple[layout.Point, ...]) -> str:
    """A smooth way from the foot of the first node to the head of the last."""
    half = layout.TALL / 2
    (x0, y0), (x1, y1) = points[0], points[-1]
    # Bends belong between the rows: past a row of nodes an edge goes straight down.
    lane = [(x, y + side) for x, y in points[1:-1] for side in (-half, half)]
    stops = [(x0, y0 + half), *lane, (x1, y1 - half)]
    way = [f"M{x0:.1f} {y0 + half:.1f}"]
    for (x, y), (to_x, to_y) in itertools.pairwise(stops):
        middle = (y + to_y) / 2
        way.append(f"C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}")
    return "".join(way)


def _legend(nodes: dict[str, Json]) -> str:
    there = {_FAMILY.get(node["kind"], "code") for node in nodes.values()}
    parts = [
        f"<span class='of-{family}'><i></i>{meaning}</span>"
        for family, meaning in _MEANINGS.items()
        if family in there
    ]
    return f"<div class='legend'>{''.join(parts)}</div>"


def _inert(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    return json.dumps(value).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _quoted(text: str) -> str:
    return html.escape(text, quote=True)


def show(graph: Graph) -> Page:
    """The graph as a picture: the last line of a notebook's cell shows it."""
    return Page(graph)


def _asset(name: str) -> str:
    return resources.files("workbench.pipeline.lineage").joinpath(name).read_text(encoding="utf-8")

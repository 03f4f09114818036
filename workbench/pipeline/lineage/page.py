"""A lineage graph as an SVG or a self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from workbench.core import workspace
from workbench.pipeline.lineage.graph import LineageGraph, node_text, without_shortcuts

Edge = tuple[str, str]
Point = tuple[float, float]

ROW_HEIGHT, NODE_HEIGHT, NODE_GAP = 92.0, 46.0, 16.0
"""From a layer to the next, the height of a node, and the least room between neighbours: pixels."""

_LANE_WIDTH = 12.0
_SWEEPS = 6
_MAX_LANES = 20_000


@dataclass(frozen=True)
class GraphLayout:
    """``at`` is each node's centre in pixels, ``paths`` the points that each edge passes."""

    at: dict[str, Point]
    paths: dict[Edge, tuple[Point, ...]]
    width: float
    height: float


def lay_out(widths: Mapping[str, float], edges: Iterable[Edge]) -> GraphLayout:
    """Lay out nodes of these widths (pixels); edges to nodes that are not there are left out."""
    known = [(a, b) for a, b in dict.fromkeys(edges) if a in widths and b in widths and a != b]
    downhill = _without_cycles(list(widths), known)
    layer = _assign_layers(list(widths), downhill)
    lanes = _edge_lanes(downhill, layer)
    wide = {
        **dict.fromkeys((one for lane in lanes.values() for one in lane), _LANE_WIDTH),
        **widths,
    }
    for (start, _), lane in lanes.items():
        layer |= {one: layer[start] + at for at, one in enumerate(lane, 1)}
    hops = [hop for edge in downhill for hop in _edge_hops(edge, lanes.get(edge, ()))]
    x = _assign_columns(_order_layers(layer, hops), hops, wide)
    left = min((x[one] - wide[one] / 2 for one in wide), default=0.0)
    at = {one: (x[one] - left, layer[one] * ROW_HEIGHT + NODE_HEIGHT / 2) for one in wide}
    paths: dict[Edge, tuple[Point, ...]] = {}
    for edge in known:
        lane = lanes.get(edge, ())
        paths[edge] = tuple(at[one] for one in (edge[0], *lane, edge[1]))
    return GraphLayout(
        {name: at[name] for name in widths},
        paths,
        width=max((at[one][0] + wide[one] / 2 for one in wide), default=0.0),
        height=max(layer.values(), default=0) * ROW_HEIGHT + NODE_HEIGHT,
    )


def _without_cycles(nodes: Sequence[str], edges: Sequence[Edge]) -> list[Edge]:
    """Edges less those that close a cycle: a run may make again what it was given."""
    after: dict[str, list[str]] = defaultdict(list)
    for start, end in edges:
        after[start].append(end)
    done: set[str] = set()
    under_way: set[str] = set()
    back: set[Edge] = set()
    for root in nodes:
        stack = [(root, iter(after[root]))] if root not in done else []
        under_way.update(one for one, _ in stack)
        while stack:
            name, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                stack.pop()
                under_way.discard(name)
                done.add(name)
            elif following in under_way:
                back.add((name, following))
            elif following not in done:
                under_way.add(following)
                stack.append((following, iter(after[following])))
    return [edge for edge in edges if edge not in back]


def _assign_layers(nodes: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """Longest path from a source; sources stand just before the first thing made of them."""
    after: dict[str, list[str]] = defaultdict(list)
    before = dict.fromkeys(nodes, 0)
    for start, end in edges:
        after[start].append(end)
        before[end] += 1
    sources = [name for name in nodes if not before[name]]
    layer = dict.fromkeys(nodes, 0)
    ready = list(sources)
    while ready:
        name = ready.pop()
        for end in after[name]:
            layer[end] = max(layer[end], layer[name] + 1)
            before[end] -= 1
            if not before[end]:
                ready.append(end)
    for name in sources:
        if after[name]:
            layer[name] = min(layer[end] for end in after[name]) - 1
    return layer


def _edge_lanes(edges: Sequence[Edge], layer: Mapping[str, int]) -> dict[Edge, tuple[str, ...]]:
    """A place in each layer that an edge passes, unless there would be too many of them."""
    spans = {edge: layer[edge[1]] - layer[edge[0]] - 1 for edge in edges}
    if sum(spans.values()) > _MAX_LANES:
        return {}
    return {
        (a, b): tuple(f"{a}>{b}>{at}" for at in range(span))
        for (a, b), span in spans.items()
        if span > 0
    }


def _edge_hops(edge: Edge, lane: Sequence[str]) -> list[Edge]:
    stops = (edge[0], *lane, edge[1])
    return list(itertools.pairwise(stops))


def _order_layers(layer: Mapping[str, int], hops: Sequence[Edge]) -> list[list[str]]:
    """Each layer's nodes from left to right, sorted by the mean place of their neighbours."""
    layers: list[list[str]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for name, at in layer.items():
        layers[at].append(name)
    before, after = _neighbours(hops)
    place = {name: float(at) for names in layers for at, name in enumerate(names)}
    for sweep in range(_SWEEPS):
        near, turn = (before, layers) if sweep % 2 == 0 else (after, layers[::-1])
        for names in turn:
            means = {one: _mean([place[n] for n in near[one]], place[one]) for one in names}
            names.sort(key=means.__getitem__)
            place.update({name: float(at) for at, name in enumerate(names)})
    return layers


def _assign_columns(
    layers: Sequence[Sequence[str]], hops: Sequence[Edge], wide: Mapping[str, float]
) -> dict[str, float]:
    """Centres from left to right: near the neighbours, in order, without touching."""
    x: dict[str, float] = {}
    offsets: dict[str, float] = {}
    for names in layers:
        at = 0.0
        for name in names:
            offsets[name] = x[name] = at + wide[name] / 2
            at += wide[name] + NODE_GAP
    before, after = _neighbours(hops)
    for sweep in range(_SWEEPS):
        near, turn = (before, layers) if sweep % 2 == 0 else (after, layers[::-1])
        for names in turn:
            wished = [_mean([x[n] for n in near[one]], x[one]) - offsets[one] for one in names]
            free = zip(names, _isotonic_fit(wished), strict=True)
            x.update({one: at + offsets[one] for one, at in free})
    return x


def _isotonic_fit(wished: Sequence[float]) -> list[float]:
    """The never falling sequence nearest to ``wished`` in squares: pool adjacent violators."""
    pools: list[tuple[float, int]] = []
    for value in wished:
        mean, count = value, 1
        while pools and pools[-1][0] > mean:
            other, size = pools.pop()
            mean, count = (mean * count + other * size) / (count + size), count + size
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]


def _neighbours(hops: Sequence[Edge]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    before: dict[str, list[str]] = defaultdict(list)
    after: dict[str, list[str]] = defaultdict(list)
    for start, end in hops:
        after[start].append(end)
        before[end].append(start)
    return before, after


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


# ---- A lineage graph to look at: one SVG, or one HTML page around it that opens from disk.
#
# The page holds its own style, script and data and asks nothing of any server; its policy lets
# nothing else run. Notebooks and environments, which every run has, are told with their run instead
# of drawn, and an edge that only repeats the way over a run is left out.


Json = dict[str, Any]

_FOLDED_KINDS = ("notebook", "environment")
_NARROW_KINDS = ("drive", "frame", "label")
_WIDE_NODE, _NARROW_NODE = 204.0, 164.0
_MARGIN = 24.0
_MAX_TITLE_LENGTH = 22
_IFRAME_HEIGHT_PX = 560

_FAMILY_LABELS = {
    "data": "data and labels",
    "choice": "selections and batches",
    "run": "runs",
    "model": "models",
    "gates": "gates",
    "release": "releases",
    "code": "code and environment",
}
_KIND_FAMILY = {
    **dict.fromkeys(("drive", "frame", "label", "annotator", "dataset", "withdrawal"), "data"),
    **dict.fromkeys(("selection", "batch", "agreement", "calibration"), "choice"),
    **dict.fromkeys(("checkpoint", "bundle"), "model"),
    **dict.fromkeys(("notebook", "environment", "receipt", "step"), "code"),
    "run": "run",
    "gates": "gates",
    "release": "release",
}


class LineagePage:
    """The picture of a graph. The last line of a notebook's cell shows it."""

    def __init__(self, graph: LineageGraph) -> None:
        self.graph = graph
        self.nodes, self.edges = _visible_graph(graph)

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
        kind, name = root.get("kind", ""), _node_title(root)
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
            f"<script id='data' type='application/json'>{_json_for_html(data)}</script>"
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
            f"style='width:100%;height:{_IFRAME_HEIGHT_PX}px;border:1px solid #d8dde4'></iframe>"
        )

    def _repr_svg_(self) -> str:
        return self.svg

    def _svg(self, style: str = "") -> str:
        widths = {name: _node_width(node) for name, node in self.nodes.items()}
        placed = lay_out(widths, self.edges)
        width, height = placed.width + 2 * _MARGIN, placed.height + 2 * _MARGIN
        edges = "".join(
            f"<path data-from='{_attribute(a)}' data-to='{_attribute(b)}' d='{_edge_curve(points)}'/>"
            for (a, b), points in placed.paths.items()
        )
        nodes = "".join(
            _node_svg(name, self.nodes[name], at, root=name == self.graph.root)
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


def _visible_graph(graph: LineageGraph) -> tuple[dict[str, Json], set[Edge]]:
    """Nodes and edges of the picture: what is folded stands in ``with`` of the run it served."""
    folded = {
        name
        for name, node in graph.nodes.items()
        if node["kind"] in _FOLDED_KINDS and name != graph.root
    }
    nodes = {name: dict(node) for name, node in graph.nodes.items() if name not in folded}
    for start, end in sorted(graph.edges):
        if start in folded and end in nodes:
            nodes[end].setdefault("with", []).append(graph.nodes[start])
    edges = without_shortcuts(graph)
    return nodes, {(a, b) for a, b in edges if a in nodes and b in nodes}


def _node_width(node: Json) -> float:
    return _NARROW_NODE if node["kind"] in _NARROW_KINDS else _WIDE_NODE


def _node_svg(name: str, node: Json, at: tuple[float, float], *, root: bool) -> str:
    width, height = _node_width(node), NODE_HEIGHT
    x, y = at[0] - width / 2, at[1] - height / 2
    kind = node["kind"]
    classes = ["node", f"of-{_KIND_FAMILY.get(kind, 'code')}", *(["root"] if root else [])]
    if node.get("missing") or node.get("damaged"):
        classes.append("bad")
    if kind == "gates":
        classes.append("passed" if node.get("verdict") == "PASS" else "refused")
    lines = (
        f"<text class='title' x='14' y='20'>{html.escape(_node_title(node))}</text>"
        f"<text class='facts' x='14' y='36'>{html.escape(_node_facts(node))}</text>"
    )
    tip = html.escape(" ".join(node_text(node).split()))
    return (
        f"<g class='{' '.join(classes)}' data-id='{_attribute(name)}' tabindex='0' "
        f"transform='translate({x:.1f} {y:.1f})'><title>{tip}</title>"
        f"<rect class='card' width='{width:.0f}' height='{height:.0f}' rx='6'/>"
        f"<rect class='stripe' width='5' height='{height:.0f}' rx='2'/>{lines}</g>"
    )


def _node_title(node: Json) -> str:
    kind = node.get("kind", "")
    count = node.get("count", node.get("labels") if kind == "label" else None)
    if count is not None:
        return _truncate(f"{count} {kind}{'' if count == 1 else 's'}")
    for key in ("name", "step", "model", "verdict"):
        if node.get(key):
            return _truncate(str(node[key]))
    return kind if node.get("name") is None else ""


def _node_facts(node: Json) -> str:
    kind = "" if node["kind"] in _node_title(node) else node["kind"]
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


def _truncate(text: str) -> str:
    return text if len(text) <= _MAX_TITLE_LENGTH else f"{text[: _MAX_TITLE_LENGTH - 1]}…"


def _edge_curve(points: tuple[Point, ...]) -> str:
    """A smooth way from the foot of the first node to the head of the last."""
    half = NODE_HEIGHT / 2
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
    there = {_KIND_FAMILY.get(node["kind"], "code") for node in nodes.values()}
    parts = [
        f"<span class='of-{family}'><i></i>{meaning}</span>"
        for family, meaning in _FAMILY_LABELS.items()
        if family in there
    ]
    return f"<div class='legend'>{''.join(parts)}</div>"


def _json_for_html(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    return json.dumps(value).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _attribute(text: str) -> str:
    return html.escape(text, quote=True)


def show(graph: LineageGraph) -> LineagePage:
    """The graph as a picture: the last line of a notebook's cell shows it."""
    return LineagePage(graph)


def _asset(name: str) -> str:
    return resources.files("workbench.pipeline.lineage").joinpath(name).read_text(encoding="utf-8")

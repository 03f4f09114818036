"""A lineage graph as an SVG or a self-contained HTML page.

The page contains its style, script and data and requests nothing from a server; its content policy
allows no other script. Notebooks and environments, which every run has, are shown with their run
instead of as nodes, and an edge that only repeats the path over a run is left out.
"""

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
from typing import TYPE_CHECKING, Any

from workbench.core.text import counted
from workbench.core.types import Json
from workbench.core.workspace import write_atomic
from workbench.pipeline.lineage.graph import LineageGraph, node_text, without_shortcuts

if TYPE_CHECKING:
    import networkx as nx  # type: ignore[import-untyped]

__all__ = ["show"]

_Edge = tuple[str, str]
_Point = tuple[float, float]

_ROW_HEIGHT, NODE_HEIGHT, NODE_GAP = 92.0, 46.0, 16.0
"""Distance of two layers, height of a node, and smallest gap between neighbours, in pixels."""

_LANE_WIDTH = 12.0
_SWEEPS = 6
_MAX_LANES = 20_000

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
    """The picture of a lineage graph; the last line of a notebook cell displays it."""

    def __init__(self, graph: LineageGraph) -> None:
        self.graph = graph
        self.nodes, self.edges = _visible_graph(graph)

    @cached_property
    def svg(self) -> str:
        """The picture alone; a tooltip describes each node in one line."""
        return self._svg(style=_asset("page.css"))

    @cached_property
    def html(self) -> str:
        """The picture with a search field, and details and paths of the selected node."""
        script = _asset("page.js")
        script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'"
        root = self.graph.nodes.get(self.graph.root, {})
        kind, name = root.get("kind", ""), _node_title(root)
        title = f"{kind} {name if name != kind else str(root.get('digest', ''))[:12]}".strip()
        direction = "Downstream of" if self.graph.forward else "Upstream of"
        data = {"nodes": self.nodes, "edges": sorted(self.edges), "root": self.graph.root}
        return (
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            f"<title>Lineage of {html.escape(title)}</title>"
            f"<style>{_asset('page.css')}</style></head><body>"
            f"<header><h1><small>{direction}</small> {html.escape(title)}</h1>"
            f"<p>{self._counts()}</p>{_legend(self.nodes)}"
            "<input id='search' type='search' placeholder='find a name, step or digest'>"
            "<button id='fit' type='button'>fit to window</button></header>"
            f"<main><div id='stage'>{self._svg()}</div><aside id='details'></aside></main>"
            f"<script id='data' type='application/json'>{_json_for_html(data)}</script>"
            f"<script>{script}</script></body></html>"
        )

    def write_html(self, path: Path) -> None:
        write_atomic(path, self.html.encode())

    def write_svg(self, path: Path) -> None:
        write_atomic(path, self.svg.encode())

    def _repr_html_(self) -> str:
        """An inline frame, which keeps its style and script apart from the notebook's."""
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
            f"<path data-from='{_attribute(start)}' data-to='{_attribute(end)}' "
            f"d='{_edge_curve(points)}'/>"
            for (start, end), points in placed.paths.items()
        )
        nodes = "".join(
            _node_svg(name, self.nodes[name], at, root=name == self.graph.root)
            for name, at in placed.centres.items()
        )
        css = f"<style>{style}</style>" if style else ""
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' class='lineage' role='img' "
            f"aria-label='lineage' viewBox='0 0 {width:.0f} {height:.0f}' "
            f"width='{width:.0f}' height='{height:.0f}'>{css}"
            "<defs><marker id='tip' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' "
            "markerHeight='7' orient='auto'><path d='M0 0 8 4 0 8z'/></marker></defs>"
            f"<g id='all' transform='translate({_MARGIN:.0f} {_MARGIN:.0f})'>"
            f"<g class='edges'>{edges}</g><g class='nodes'>{nodes}</g></g></svg>"
        )

    def _counts(self) -> str:
        counts = Counter(node["kind"] for node in self.graph.nodes.values())
        return html.escape(" · ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))


def _visible_graph(graph: LineageGraph) -> tuple[dict[str, Json], set[_Edge]]:
    """Nodes and edges of the picture; folded nodes are listed as ``with`` of their run."""
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
        return _truncate(counted(count, kind))
    for key in ("name", "step", "model", "verdict"):
        if node.get(key):
            return _truncate(str(node[key]))
    return kind if node.get("name") is None else ""


def _node_facts(node: Json) -> str:
    kind = "" if node["kind"] in _node_title(node) else node["kind"]
    words = [kind, node.get("origin", ""), str(node.get("digest", ""))[:10]]
    if "count" in node or node["kind"] == "annotator":
        words.pop()  # it is the digest of the dataset or label set, which has a node of its own
    if node.get("missing"):
        words.append("missing")
    if node.get("damaged"):
        words.append("damaged")
    if node.get("simulated"):
        words.append("simulated")
    return " · ".join(word for word in words if word)


def _truncate(text: str) -> str:
    return text if len(text) <= _MAX_TITLE_LENGTH else f"{text[: _MAX_TITLE_LENGTH - 1]}…"


def _edge_curve(points: tuple[_Point, ...]) -> str:
    """A smooth path from the bottom of the first node to the top of the last."""
    half = NODE_HEIGHT / 2
    (x0, y0), (x1, y1) = points[0], points[-1]
    # Edges bend between the rows only, so that they do not cross nodes.
    lane = [(x, y + side) for x, y in points[1:-1] for side in (-half, half)]
    stops = [(x0, y0 + half), *lane, (x1, y1 - half)]
    path = [f"M{x0:.1f} {y0 + half:.1f}"]
    for (x, y), (to_x, to_y) in itertools.pairwise(stops):
        middle = (y + to_y) / 2
        path.append(f"C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}")
    return "".join(path)


def _legend(nodes: dict[str, Json]) -> str:
    present = {_KIND_FAMILY.get(node["kind"], "code") for node in nodes.values()}
    parts = [
        f"<span class='of-{family}'><i></i>{meaning}</span>"
        for family, meaning in _FAMILY_LABELS.items()
        if family in present
    ]
    return f"<div class='legend'>{''.join(parts)}</div>"


def _json_for_html(value: Any) -> str:
    """JSON that cannot close the HTML element it is in."""
    return json.dumps(value).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _attribute(text: str) -> str:
    return html.escape(text, quote=True)


def show(graph: LineageGraph) -> LineagePage:
    """The graph as a picture, shown by the last line of a notebook cell."""
    return LineagePage(graph)


def _asset(name: str) -> str:
    return resources.files("workbench.pipeline.lineage").joinpath(name).read_text(encoding="utf-8")


# Layout: layers from what was used to what was made from it, with few crossings and straight edges.
# The steps are those of Sugiyama, Tagawa and Toda (1981): layers by longest path, lanes for edges
# that pass layers, order by the mean of the neighbours, then positions by isotonic regression.


@dataclass(frozen=True)
class _GraphLayout:
    """Each node's centre and the points that each edge passes, in pixels from the top left."""

    centres: dict[str, _Point]
    paths: dict[_Edge, tuple[_Point, ...]]
    width: float
    height: float


def lay_out(widths: Mapping[str, float], edges: Iterable[_Edge]) -> _GraphLayout:
    """Compute positions of nodes and edges.

    Args:
        widths: Node to its width in pixels.
        edges: From what was used to what was made; those of unknown nodes are left out.
    """
    known = [(a, b) for a, b in dict.fromkeys(edges) if a in widths and b in widths and a != b]
    graph = _acyclic_graph(widths, known)
    layer = _assign_layers(graph)
    acyclic = list(graph.edges)
    lanes = _edge_lanes(acyclic, layer)
    wide = {
        **dict.fromkeys((one for lane in lanes.values() for one in lane), _LANE_WIDTH),
        **widths,
    }
    for (start, _), lane in lanes.items():
        layer |= {one: layer[start] + at for at, one in enumerate(lane, 1)}
    hops = [hop for edge in acyclic for hop in _edge_hops(edge, lanes.get(edge, ()))]
    x = _assign_columns(_order_layers(layer, hops), hops, wide)
    left = min((x[one] - wide[one] / 2 for one in wide), default=0.0)
    at = {one: (x[one] - left, layer[one] * _ROW_HEIGHT + NODE_HEIGHT / 2) for one in wide}
    paths: dict[_Edge, tuple[_Point, ...]] = {}
    for edge in known:
        lane = lanes.get(edge, ())
        paths[edge] = tuple(at[one] for one in (edge[0], *lane, edge[1]))
    return _GraphLayout(
        {name: at[name] for name in widths},
        paths,
        width=max((at[one][0] + wide[one] / 2 for one in wide), default=0.0),
        height=max(layer.values(), default=0) * _ROW_HEIGHT + NODE_HEIGHT,
    )


def _acyclic_graph(nodes: Iterable[str], edges: Iterable[_Edge]) -> nx.DiGraph:
    """The graph without the edges that close a cycle: a run may make again what it was given."""
    import networkx as nx  # type: ignore[import-untyped]

    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from(nodes)
    graph.add_edges_from(edges)
    while not nx.is_directed_acyclic_graph(graph):
        cycle = nx.find_cycle(graph)
        graph.remove_edge(*cycle[-1])
    return graph


def _assign_layers(graph: nx.DiGraph) -> dict[str, int]:
    """Longest path from a source; sources are placed right before the first node made from them."""
    import networkx as nx  # type: ignore[import-untyped]

    generations = list(nx.topological_generations(graph))
    layer = {name: at for at, names in enumerate(generations) for name in names}
    for name in generations[0] if generations else ():
        if graph.succ[name]:
            layer[name] = min(layer[end] for end in graph.succ[name]) - 1
    return {name: layer[name] for name in graph}


def _edge_lanes(edges: Sequence[_Edge], layer: Mapping[str, int]) -> dict[_Edge, tuple[str, ...]]:
    """A lane in each layer that an edge passes; none at all when there would be too many."""
    spans = {edge: layer[edge[1]] - layer[edge[0]] - 1 for edge in edges}
    if sum(spans.values()) > _MAX_LANES:
        return {}
    return {
        (a, b): tuple(f"{a}>{b}>{at}" for at in range(span))
        for (a, b), span in spans.items()
        if span > 0
    }


def _edge_hops(edge: _Edge, lane: Sequence[str]) -> list[_Edge]:
    stops = (edge[0], *lane, edge[1])
    return list(itertools.pairwise(stops))


def _order_layers(layer: Mapping[str, int], hops: Sequence[_Edge]) -> list[list[str]]:
    """Each layer's nodes from left to right, sorted by the mean position of their neighbours."""
    layers: list[list[str]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for name, at in layer.items():
        layers[at].append(name)
    before, after = _neighbours(hops)
    position = {name: float(at) for names in layers for at, name in enumerate(names)}
    for sweep in range(_SWEEPS):
        near, turn = (before, layers) if sweep % 2 == 0 else (after, layers[::-1])
        for names in turn:
            means = {one: _mean([position[n] for n in near[one]], position[one]) for one in names}
            names.sort(key=means.__getitem__)
            position.update({name: float(at) for at, name in enumerate(names)})
    return layers


def _assign_columns(
    layers: Sequence[Sequence[str]], hops: Sequence[_Edge], wide: Mapping[str, float]
) -> dict[str, float]:
    """Horizontal centres: near the neighbours, in order, without overlap."""
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
            wanted = [_mean([x[n] for n in near[one]], x[one]) - offsets[one] for one in names]
            free = zip(names, _isotonic_fit(wanted), strict=True)
            x.update({one: at + offsets[one] for one, at in free})
    return x


def _isotonic_fit(values: Sequence[float]) -> list[float]:
    """The least-squares non-decreasing sequence (pool adjacent violators algorithm)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while pools and pools[-1][0] > mean:
            other, size = pools.pop()
            mean, count = (mean * count + other * size) / (count + size), count + size
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]


def _neighbours(hops: Sequence[_Edge]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    before: dict[str, list[str]] = defaultdict(list)
    after: dict[str, list[str]] = defaultdict(list)
    for start, end in hops:
        after[start].append(end)
        before[end].append(start)
    return before, after


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise

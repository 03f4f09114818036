"""Where the nodes of a lineage graph stand in its picture: in layers, from what was used to what
was made of it, with few crossings and edges as straight as the layers allow.

The steps are those of Sugiyama, Tagawa and Toda (1981): layers by longest path, lanes for edges
that pass layers, order by the mean of the neighbours, then positions by isotonic regression.
All of it is linear in nodes and lanes, but for the sorting.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Edge = tuple[str, str]
Point = tuple[float, float]

ROW, TALL, GAP = 92.0, 46.0, 16.0
"""From a layer to the next, the height of a node, and the least room between neighbours: pixels."""

_LANE = 12.0
_SWEEPS = 6
_MOST_LANES = 20_000


@dataclass(frozen=True)
class Layout:
    """``at`` is each node's centre in pixels, ``paths`` the points that each edge passes."""

    at: dict[str, Point]
    paths: dict[Edge, tuple[Point, ...]]
    width: float
    height: float


def place(widths: Mapping[str, float], edges: Iterable[Edge]) -> Layout:
    """Lay out nodes of these widths (pixels); edges to nodes that are not there are left out."""
    known = [(a, b) for a, b in dict.fromkeys(edges) if a in widths and b in widths and a != b]
    downhill = _without_cycles(list(widths), known)
    layer = _layers(list(widths), downhill)
    lanes = _lanes(downhill, layer)
    wide = {**dict.fromkeys((one for lane in lanes.values() for one in lane), _LANE), **widths}
    for (start, _), lane in lanes.items():
        layer |= {one: layer[start] + at for at, one in enumerate(lane, 1)}
    hops = [hop for edge in downhill for hop in _hops(edge, lanes.get(edge, ()))]
    x = _columns(_ordered(layer, hops), hops, wide)
    left = min((x[one] - wide[one] / 2 for one in wide), default=0.0)
    at = {one: (x[one] - left, layer[one] * ROW + TALL / 2) for one in wide}
    paths: dict[Edge, tuple[Point, ...]] = {}
    for edge in known:
        lane = lanes.get(edge, ())
        paths[edge] = tuple(at[one] for one in (edge[0], *lane, edge[1]))
    return Layout(
        {name: at[name] for name in widths},
        paths,
        width=max((at[one][0] + wide[one] / 2 for one in wide), default=0.0),
        height=max(layer.values(), default=0) * ROW + TALL,
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


def _layers(nodes: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
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


def _lanes(edges: Sequence[Edge], layer: Mapping[str, int]) -> dict[Edge, tuple[str, ...]]:
    """A place in each layer that an edge passes, unless there would be too many of them."""
    spans = {edge: layer[edge[1]] - layer[edge[0]] - 1 for edge in edges}
    if sum(spans.values()) > _MOST_LANES:
        return {}
    return {
        (a, b): tuple(f"{a}>{b}>{at}" for at in range(span))
        for (a, b), span in spans.items()
        if span > 0
    }


def _hops(edge: Edge, lane: Sequence[str]) -> list[Edge]:
    stops = (edge[0], *lane, edge[1])
    return list(itertools.pairwise(stops))


def _ordered(layer: Mapping[str, int], hops: Sequence[Edge]) -> list[list[str]]:
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


def _columns(
    layers: Sequence[Sequence[str]], hops: Sequence[Edge], wide: Mapping[str, float]
) -> dict[str, float]:
    """Centres from left to right: near the neighbours, in order, without touching."""
    x: dict[str, float] = {}
    offsets: dict[str, float] = {}
    for names in layers:
        at = 0.0
        for name in names:
            offsets[name] = x[name] = at + wide[name] / 2
            at += wide[name] + GAP
    before, after = _neighbours(hops)
    for sweep in range(_SWEEPS):
        near, turn = (before, layers) if sweep % 2 == 0 else (after, layers[::-1])
        for names in turn:
            wished = [_mean([x[n] for n in near[one]], x[one]) - offsets[one] for one in names]
            free = zip(names, _rising(wished), strict=True)
            x.update({one: at + offsets[one] for one, at in free})
    return x


def _rising(wished: Sequence[float]) -> list[float]:
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

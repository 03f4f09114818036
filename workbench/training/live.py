"""A training as it goes, in the notebook: how far it is, and its curves.

Nothing is drawn where nobody looks: in a pipeline the same calls only pass on what is told.
"""

from __future__ import annotations

import html
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_DRAW_EVERY_S = 0.5
_WIDTH, _HEIGHT, _MARGIN = 640, 200, 34
_MOST_POINTS = 400
_COLOURS = ("#2563eb", "#c2410c", "#2f855a", "#7c3aed", "#b7791f", "#0e7490")
_LEFT_OUT = ("train/lr",)


class Live:
    """Passes on what a training tells, and shows it when there is somebody to see.

    Args:
        progress: Told steps done and in all, such as ``step.progress``.
        log: Told a curve's name, value and step, such as ``step.metric``.
        shown: Whether to draw; ``not step.headless`` in a step's notebook.

    Attributes:
        curves: Every curve so far, name to its points (step, value).
    """

    def __init__(
        self,
        progress: Callable[[int, int], None],
        log: Callable[[str, float, int], None],
        *,
        shown: bool,
    ) -> None:
        self._progress, self._log = progress, log
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self._drawn_at = 0.0
        self._began = time.monotonic()
        self._bar: Any = None
        self._picture: Any = None
        if shown:
            self._show()

    def progress(self, done: int, total: int) -> None:
        self._progress(done, total)
        if self._bar is not None:
            self._bar.max, self._bar.value = total, done
            spent = time.monotonic() - self._began
            left = spent / done * (total - done) if done else 0.0
            self._bar.description = f"{done} of {total}"
            self._words = f"{spent:.0f} s, about {left:.0f} s left"
            self._draw(last=done == total)

    def log(self, name: str, value: float, step: int) -> None:
        self._log(name, value, step)
        if self._picture is not None and name not in _LEFT_OUT:
            self.curves.setdefault(name, []).append((step, value))
            if 0 < self._bar.max == self._bar.value:  # the last look comes after the last step
                self._draw(last=True)

    def _show(self) -> None:
        import IPython.display
        import ipywidgets

        display: Any = IPython.display.display
        self._words = ""
        self._bar = ipywidgets.IntProgress(0, 0, 1, description="", layout={"width": "640px"})
        self._picture = ipywidgets.HTML()
        display(ipywidgets.VBox([self._bar, self._picture]))

    def _draw(self, *, last: bool) -> None:
        now = time.monotonic()
        if last or now - self._drawn_at >= _DRAW_EVERY_S:
            self._drawn_at = now
            self._picture.value = f"{svg(self.curves)}<div>{html.escape(self._words)}</div>"


def svg(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Losses on a logarithmic axis, watched figures from 0 to 1 beside them, as one SVG."""
    losses = {name: points for name, points in curves.items() if not name.startswith("watched/")}
    watched = {name: points for name, points in curves.items() if name.startswith("watched/")}
    panels = [_panel(losses, 0, logarithmic=True)] if losses else []
    if watched:
        panels.append(_panel(watched, _WIDTH if losses else 0, logarithmic=False))
    width = _WIDTH * max(1, len(panels))
    return (
        f"<svg viewBox='0 0 {width} {_HEIGHT}' width='{width}' "
        f"style='max-width: 100%; height: auto' role='img' aria-label='curves of the training'>"
        f"{''.join(panels)}</svg>"
    )


def _panel(
    curves: Mapping[str, Sequence[tuple[int, float]]], left: int, *, logarithmic: bool
) -> str:
    def height(value: float) -> float:
        return math.log10(max(value, 1e-6)) if logarithmic else value

    points = [point for curve in curves.values() for point in curve]
    last = max(1, *(step for step, _ in points))
    heights = [height(value) for _, value in points if math.isfinite(value)] or [0.0]
    low, high = (min(heights), max(heights)) if logarithmic else (0.0, 1.0)
    span = (high - low) or 1.0
    parts = [_axis(left, low, high, last, logarithmic=logarithmic)]
    for number, (name, curve) in enumerate(sorted(curves.items())):
        colour = _COLOURS[number % len(_COLOURS)]
        every = max(1, len(curve) // _MOST_POINTS)
        shown = [*curve[::every], curve[-1]]
        path = " ".join(
            f"{left + _MARGIN + step / last * (_WIDTH - 2 * _MARGIN):.1f},"
            f"{_HEIGHT - 22 - (height(value) - low) / span * (_HEIGHT - 40):.1f}"
            for step, value in shown
            if math.isfinite(value)
        )
        parts.append(
            f"<polyline fill='none' stroke='{colour}' stroke-width='1.4' points='{path}'/>"
        )
        if len(curve) == 1 and path:
            x, _, y = path.split()[0].partition(",")
            parts.append(f"<circle cx='{x}' cy='{y}' r='2.5' fill='{colour}'/>")
        words = html.escape(f"{name.partition('/')[2] or name} {curve[-1][1]:.3g}")
        across = left + _MARGIN + 8 + 145 * (number % 4)
        down = 12 + 12 * (number // 4)
        parts.append(f"<text x='{across}' y='{down}' font-size='11' fill='{colour}'>{words}</text>")
    return "".join(parts)


def _axis(left: int, low: float, high: float, last: int, *, logarithmic: bool) -> str:
    bottom, right = _HEIGHT - 22, left + _WIDTH - _MARGIN
    top_word, low_word = (f"{10**high:.2g}", f"{10**low:.2g}") if logarithmic else ("1", "0")
    return (
        f"<path d='M{left + _MARGIN} 18 V{bottom} H{right}' stroke='#9aa4b5' fill='none'/>"
        f"<g font-size='10' fill='#667084'><text x='{left + 2}' y='24'>{top_word}</text>"
        f"<text x='{left + 2}' y='{bottom}'>{low_word}</text>"
        f"<text x='{right - 46}' y='{_HEIGHT - 8}'>step {last}</text></g>"
    )

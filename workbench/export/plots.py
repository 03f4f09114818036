"""Plots of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.export.sensitivity import Sensitivity

_BLUE, _ORANGE = "#0072B2", "#D55E00"


def plot_parity(report: dict[str, Any], latency: dict[str, Any], sizes: Mapping[str, int]) -> Any:
    """Bars a file: box agreement with the network, size, and latency where it was measured.

    Args:
        report: Of `parity.compare`.
        latency: Of `latency.measure`.
        sizes: Bytes by file name.
    """
    import matplotlib.pyplot as plt

    files = list(report["targets"])
    times = latency["models"]
    panels = {
        "agreement with the network": [report["targets"][name]["agreement"] for name in files],
        "size, MiB": [sizes[name] / 2**20 for name in files],
        "latency here, ms": [times.get(name, {}).get("median_ms") for name in files],
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 0.5 * len(files) + 1.2), sharey=True)
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        axis.barh(files, [value or 0 for value in values], color=_BLUE, height=0.6)
        for row, value in enumerate(values):
            axis.text(0, row, " not measured" if value is None else f" {value:.3g}", va="center")
        axis.set_title(title, fontsize=9)
        axis.invert_yaxis() if axis is axes[0] else None
    figure.suptitle(f"{report['frames']} evaluation frames", fontsize=9)
    figure.tight_layout()
    return figure


def plot_sensitivity(found: Sensitivity, kept: Sequence[str] = ()) -> Any:
    """A row for each layer in the order they run: its own noise, and what it alone does.

    Args:
        kept: Modules that stay in float, marked.
    """
    import matplotlib.pyplot as plt

    rows = found.layers
    names = [row.layer.module + (" (float)" if row.layer.module in kept else "") for row in rows]
    places = range(len(rows))
    figure, axes = plt.subplots(1, 3, figsize=(11, 0.22 * len(rows) + 1.4), sharey=True)
    columns = (
        ("own output, all layers INT8", [row.own_db for row in rows], _BLUE),
        ("worst output, only this INT8", [row.alone_int8_db for row in rows], _BLUE),
        ("won when this stays float", [row.gain_db for row in rows], _ORANGE),
    )
    for axis, (title, values, colour) in zip(axes, columns, strict=True):
        axis.barh(places, values, color=colour, height=0.7)
        axis.set_title(f"{title}, dB", fontsize=9)
        axis.tick_params(labelsize=7)
    axes[0].set_yticks(list(places), names)
    axes[0].invert_yaxis()
    figure.suptitle(
        f"{found.frames} frames that were learned from; whole file {found.whole.least_db:.1f} dB",
        fontsize=9,
    )
    figure.tight_layout()
    return figure

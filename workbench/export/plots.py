"""Plots of an export: parity, size and latency of the files, sensitivity of the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.core.types import Json
from workbench.export.sensitivity import Layer, Sensitivity

__all__ = ["plot_parity", "plot_sensitivity"]

_BLUE, _ORANGE = "#0072B2", "#D55E00"


def plot_parity(report: Json, latency: Json, sizes: Mapping[str, int]) -> Any:
    """Plot box agreement, size, and latency where it was measured, as bars for each file.

    Args:
        report: The parity report.
        latency: Of `exporter.measure`.
        sizes: Bytes by file name.

    Returns:
        The matplotlib figure.
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


def plot_sensitivity(sensitivity: Sensitivity, kept_float: Sequence[Layer] = ()) -> Any:
    """Plot a row for each layer in the order they run: its own noise, and what it does alone.

    Args:
        sensitivity: Of all layers.
        kept_float: Layers that stay in float, marked.

    Returns:
        The matplotlib figure.
    """
    import matplotlib.pyplot as plt

    rows = sensitivity.layers
    names = [row.layer.module + (" (float)" if row.layer in kept_float else "") for row in rows]
    figure, axes = plt.subplots(1, 3, figsize=(11, 0.22 * len(rows) + 1.4), sharey=True)
    columns = (
        ("own output, all layers INT8", [row.own_db for row in rows], _BLUE),
        ("worst output, only this INT8", [row.alone_int8_db for row in rows], _BLUE),
        ("gain when this stays float", [row.gain_db for row in rows], _ORANGE),
    )
    for axis, (title, values, color) in zip(axes, columns, strict=True):
        axis.barh(range(len(rows)), values, color=color, height=0.7)
        axis.set_title(f"{title}, dB", fontsize=9)
        axis.tick_params(labelsize=7)
    axes[0].set_yticks(range(len(rows)), names)
    axes[0].invert_yaxis()
    figure.suptitle(
        f"{sensitivity.frames} training frames; whole file {sensitivity.whole.least_db:.1f} dB",
        fontsize=9,
    )
    figure.tight_layout()
    return figure

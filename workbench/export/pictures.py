"""Pictures of an export: how small, how fast and how close to the network each file is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BLUE = "#0072B2"


def parity(report: dict[str, Any], latency: dict[str, Any], sizes: Mapping[str, int]) -> Any:
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

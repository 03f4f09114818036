"""A training half-way, as one file: weights, their average, the optimiser and how far it is.

One safetensors file, replaced in one rename, so that a kill at any moment leaves either the old
state or the new one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.workspace import replacing

FILE = "training.safetensors"
_META = "workbench"


def save(
    folder: Path,
    *,
    model: nn.Module,
    average: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    facts: dict[str, Any],
) -> None:
    """Write everything that the next step depends on; ``facts`` is plain JSON."""
    from safetensors.torch import save_file

    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.items()}
    for number, slots in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{slot}": value for slot, value in slots.items()}
    dense = {name: value.detach().contiguous() for name, value in tensors.items()}
    with replacing(folder / FILE) as temporary:
        save_file(dense, temporary, metadata={_META: json.dumps(facts)})


def load(
    folder: Path,
    key: str,
    *,
    model: nn.Module,
    average: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
) -> dict[str, Any] | None:
    """Restore in place and return the facts; None when there is nothing of this training.

    Args:
        key: Must equal ``facts["key"]``, else the state belongs to another training.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as stream:
            facts: dict[str, Any] = json.loads((stream.metadata() or {}).get(_META, "{}"))
            if facts.get("key") != key:
                return None
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError):
        return None  # damaged: the training starts again, which costs time and nothing else
    model.load_state_dict(_below(tensors, "model."))
    for name, value in _below(tensors, "average.").items():
        average[name].copy_(value)
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in _below(tensors, "optimiser.").items():
        number, slot = name.split(".", 1)
        slots.setdefault(int(number), {})[slot] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": slots, "param_groups": groups})
    return facts


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }

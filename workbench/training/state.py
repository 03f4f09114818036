"""A training half-way, as one file: weights, their average, the optimiser and how far it is.

The file is named by its own digest and comes into being in one rename; the one before it stays
until then. So a kill at any moment leaves a whole state, a file that was cut short or changed is
never taken for one, and the next older is.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench import digest
from workbench.workspace import replacing

_PREFIX, _SUFFIX = "training-", ".safetensors"
_META = "workbench"
_KEPT = 2
_NAMED_BY = 16  # digits of the digest


def save(folder: Path, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> Path:
    """Write everything that the next step depends on; ``facts`` is plain JSON with a ``step``."""
    from safetensors.torch import save as to_bytes

    seen: set[int] = set()
    alone: dict[str, Tensor] = {}
    for name, value in tensors.items():
        dense = value.detach().cpu().contiguous()
        # Weights that a network uses twice are written twice: the format knows no sharing.
        alone[name] = dense.clone() if dense.data_ptr() in seen else dense
        seen.add(dense.data_ptr())
    content = to_bytes(alone, metadata={_META: json.dumps(facts)})
    name = f"{_PREFIX}{facts['step']:09}-{digest.of_bytes(content)[:_NAMED_BY]}{_SUFFIX}"
    with replacing(folder / name) as temporary:
        temporary.write_bytes(content)
    for old in _files(folder)[_KEPT:]:
        old.unlink(missing_ok=True)
    return folder / name


def load(folder: Path, key: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Facts and tensors of the newest whole state of this training; None when there is none.

    Args:
        key: Must equal ``facts["key"]``, else the state belongs to another training.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    for path in _files(folder):
        with contextlib.suppress(OSError, SafetensorError, ValueError, KeyError):
            content = path.read_bytes()
            if digest.of_bytes(content)[:_NAMED_BY] != path.stem.rpartition("-")[2]:
                continue
            size = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + size])
            facts: dict[str, Any] = json.loads(header["__metadata__"][_META])
            if facts["key"] == key:
                return facts, from_bytes(content)
    return None


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that beginning."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for number, slots in optimiser.state_dict()["state"].items():
        for slot, value in slots.items():
            yield f"{number}.{slot}", value


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, slot = name.split(".", 1)
        slots.setdefault(int(number), {})[slot] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": slots, "param_groups": groups})
    for group in optimiser.param_groups:
        for weight in group["params"]:
            for slot, value in optimiser.state[weight].items():
                if value.shape == weight.shape:
                    # A fused step walks weight and moments side by side through memory: they must
                    # lie in the same order there, which a file does not keep.
                    optimiser.state[weight][slot] = torch.empty_like(weight.detach()).copy_(value)


def _files(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}"), reverse=True)

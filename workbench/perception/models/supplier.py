"""Where a model from outside comes from, and on what terms."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from workbench import digest
from workbench.errors import DataError
from workbench.records.types import Supplier

_HUB_FILES = ["*.json", "*.safetensors", "README.md", "LICENSE*"]


def folder_of(source: str | Path, revision: str | None) -> tuple[Path, str, str]:
    """Folder, origin and commit of a model: a folder as it is, a name on the hub fetched.

    Raises:
        DataError: It is neither, or the hub does not answer.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder, f"folder:{folder.resolve().name}", ""
    if folder.is_absolute() or str(source).startswith(".") or str(source).count("/") != 1:
        raise DataError(
            "there is no such model folder",
            where=source,
            hint="Give a folder, or OWNER/NAME of a model on the hub",
        )
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub

    try:
        local = huggingface_hub.snapshot_download(
            str(source), revision=revision, allow_patterns=_HUB_FILES
        )
    except Exception as error:  # the hub's errors, the network's and the disk's share no base
        raise DataError(
            f"the model cannot be fetched from the hub: {str(error).splitlines()[0]}",
            where=source,
            hint="Check the name and the connection, or give a folder that holds the model",
        ) from error
    return Path(local), f"hub:{source}", Path(local).name


def part_of(
    folder: Path, origin: str, commit: str, licence: str | None, *, weights: bool = True
) -> Supplier:
    """The supplier's part as it is recorded; raises `DataError` without a licence or weights."""
    named = licence or licence_of(folder)
    if not named:
        raise DataError(
            "the supplier's model has no licence: nobody may ship what they may not use",
            where=origin,
            hint="Its README must name one (`license:` at its top), or a LICENSE file must lie "
            "beside it; else find out, and pass licence=…",
        )
    files = sorted(folder.glob("*.safetensors"))
    if weights and not files:
        raise DataError(
            "the model's weights are not there as safetensors",
            where=origin,
            hint="Other formats may run code when they are read: convert them where that is safe",
        )
    sums = {path.name: digest.of_file(path) for path in files} if weights else {}
    return Supplier(
        origin=origin,
        revision=commit,
        licence=named,
        weights=digest.of_json(sums) if sums else None,
    )


def licence_of(folder: Path) -> str | None:
    """What the README's head or, failing that, a licence file says; None when neither does."""
    readme = folder / "README.md"
    if readme.exists():
        parts = readme.read_text(errors="replace").split("---", 2)
        if len(parts) == 3 and not parts[0].strip():
            try:
                head = yaml.safe_load(parts[1])
            except yaml.YAMLError:
                head = None
            if isinstance(head, dict):
                named = str(head.get("license") or "").strip()
                named = str(head.get("license_name") or named) if named == "other" else named
                if named:
                    return named
    for path in sorted(folder.glob("LICEN[SC]E*")):
        first = next((line.strip() for line in path.read_text().splitlines() if line.strip()), "")
        if first:
            return f"{path.name}: {first}"
    return None

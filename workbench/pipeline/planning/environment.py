"""What the machine contributes to a result: installed distributions and the class of CPU or GPU."""

from __future__ import annotations

import platform
import sysconfig
from functools import lru_cache
from pathlib import Path

from workbench import digest
from workbench.records.types import Environment

_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "i8mm")


@lru_cache(maxsize=1)
def current() -> Environment:
    """The environment of this interpreter. Reads folder names, imports nothing."""
    return Environment(
        python=platform.python_version(),
        distributions=tuple(sorted(_distributions())),
        machine=_machine(),
    )


@lru_cache(maxsize=1)
def digest_of_current() -> str:
    return digest.of_json(current().model_dump(mode="json"))


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """What can change in an environment, by name: distributions, Python, traits of the machine."""
    found = current()
    lines = (line.partition("==") for line in found.distributions)
    machine = {key: str(value) for key, value in found.machine.items()}
    return {**{name: version for name, _, version in lines}, "python": found.python, **machine}


def _distributions() -> set[str]:
    """``name==version+digest of its build`` for each installed distribution but our own."""
    found = set()
    # Not sys.path: packages that carry copies of others put those on it while they are imported.
    for folder in {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}:
        for info in folder.glob("*.dist-info"):
            name, _, version = info.name.removesuffix(".dist-info").partition("-")
            if name == "workbench":
                continue  # our own code counts module by module
            wheel = info / "WHEEL"
            build = digest.of_file(wheel)[:8] if wheel.exists() else "unknown"
            found.add(f"{name.lower()}=={version}#{build}")
    return found


def _machine() -> dict[str, str | list[str]]:
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "features": [flag for flag in _CPU_FLAGS if flag in _cpu_flags()],
        "accelerator": _accelerator(),
    }


def _cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return set()
    for line in info.read_text().splitlines():
        if line.lower().startswith(("flags", "features")):
            return set(line.partition(":")[2].split())
    return set()


def _accelerator() -> str:
    names = Path("/proc/driver/nvidia/gpus")
    if not names.is_dir():
        return "none"
    models = set()
    for card in names.glob("*/information"):
        for line in card.read_text().splitlines():
            if line.startswith("Model:"):
                models.add(line.partition(":")[2].strip())
    return ", ".join(sorted(models)) or "none"

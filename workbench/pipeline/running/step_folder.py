"""A step's folder as one file: the executed notebook, metrics, figures and output of a far worker.

Its size is bounded, for a notebook may leave anything there; the largest files are left out first,
and ``left-out.txt`` names them.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

from workbench.errors import RecordError

LEFT_OUT = "left-out.txt"

_LARGEST_BYTES = 256 * 2**20
_SPEC = "spec.json"  # may hold the keys of servers; the driver has its own


def pack(folder: Path, archive: Path, *, largest: int = _LARGEST_BYTES) -> None:
    """Write the regular files below ``folder`` into a new tar ``archive``.

    Args:
        largest: Bytes of all files together, before compression.
    """
    (folder / LEFT_OUT).unlink(missing_ok=True)
    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path != folder / _SPEC
    ]
    taken, left_out, room = [], [], largest
    for path in sorted(files, key=lambda path: (path.stat().st_size, path)):
        size = path.stat().st_size
        room -= size
        if room < 0:
            left_out.append(f"{path.relative_to(folder)} ({size} bytes)\n")
        else:
            taken.append(path)
    if left_out:
        (folder / LEFT_OUT).write_text("".join(left_out), encoding="utf-8")
        taken.append(folder / LEFT_OUT)
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for path in taken:
            tar.add(path, str(path.relative_to(folder)), recursive=False)


def unpack(archive: Path, folder: Path, *, largest: int = _LARGEST_BYTES) -> None:
    """Write the files of ``archive`` below ``folder``, and nothing beside it.

    Raises:
        RecordError: It is no such archive, or holds links, devices or more than was allowed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            members = tar.getmembers()
            odd = next((one.name for one in members if not one.isfile()), None)
            # A list of what was left out comes on top.
            if odd or sum(one.size for one in members) > largest + 2**20:
                raise RecordError(f"holds what no step's folder does: {odd or 'too much'}")
            tar.extractall(folder, filter="data")
    except (RecordError, tarfile.TarError, OSError, EOFError) as error:
        raise RecordError(f"a worker's step folder cannot be unpacked: {error}") from error

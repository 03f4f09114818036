"""Start the servers, then replace this process by a program that finds them in its environment.

python -m workbench.services.launch jupyter lab
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from workbench import services
from workbench.core.errors import WorkbenchError
from workbench.core.workspace import find_workspace

__all__ = ()


def main(arguments: list[str]) -> int:
    """Replace this process by the program ``arguments``; returns only if that fails."""
    if not arguments:
        print("usage: python -m workbench.services.launch PROGRAM [ARGUMENT…]", file=sys.stderr)
        return 2
    workspace = find_workspace()
    try:
        services.up(workspace, progress=lambda message: print(message, file=sys.stderr))
        variables = {
            **os.environ,
            **services.environment(workspace, passwords=True, inherited=True),
        }
        # Plots for light and dark pages, in notebooks that import no step, too.
        variables.setdefault("MATPLOTLIBRC", str(Path(__file__).parents[1] / "data/matplotlibrc"))
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    # Programs of this Python environment come first, even if it is not activated.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    try:
        os.execvpe(arguments[0], arguments, {**variables, "PATH": path})  # noqa: S606
    except OSError as error:
        print(f"error: cannot run {arguments[0]}: {error.strerror}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

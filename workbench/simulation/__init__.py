"""Front-camera drives rendered from scenario descriptions, with exact ground truth."""

from workbench.simulation.drives import write_drives

__all__ = ["write_drives"]

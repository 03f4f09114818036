"""Front-camera drives rendered from scenario descriptions, with exact ground truth.

    traffic.fleet(profile, seed)      who drives where, in what light     -> Scenario
    render.render(scenario, index)    one frame of it with its boxes      -> RenderedFrame
    drives.write_drives(folder)       all of that as COCO on disk

Everything made here is simulated, and says so wherever it is stored.
"""

from workbench.simulation.drives import write_drives

__all__ = ["write_drives"]

"""Releases to vehicles in stages, and back.

`plan` reads a rollout plan, `publishing` signs its releases, `rollout` carries it out over the
`director`'s database, `canary` judges. `server` answers vehicles; a `vehicle` verifies what it gets
(`verification`), installs it and reports. `metadata` has the two repositories, `components` says
what goes together, `reasons` why something was refused. `simulated` drives a fleet without a road.
"""

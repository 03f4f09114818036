"""One step: what its notebook sees, and the unit that runs it."""

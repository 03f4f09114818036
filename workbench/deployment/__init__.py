"""Running an exported bundle as a vehicle would: verified, within a time budget, always with an answer."""

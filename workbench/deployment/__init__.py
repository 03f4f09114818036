"""Deployment: runs an exported bundle as a vehicle would, within a time budget."""

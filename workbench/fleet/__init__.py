"""Releases to vehicles in stages: canary judge, update security, vehicles, director, rollout."""

"""Hygiene: duplicates, leaks between roles, thin conditions, labels that look wrong."""

"""Releases: signing keys, signed folders and release records."""

"""Signing a bundle, checking it to the byte, and deciding whether it may become champion."""

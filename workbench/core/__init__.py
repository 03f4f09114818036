"""Foundations without an SDK: errors, the workspace, digests, processes, shared types."""

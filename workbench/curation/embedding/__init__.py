"""Embeddings of a pool: encoders, one pass, shards on disk."""

from workbench.curation.embedding.one_pass import Embeddings, embed

__all__ = ["Embeddings", "embed"]

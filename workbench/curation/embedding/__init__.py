"""Embeddings of a pool: encoders, one pass, shards on disk."""

from workbench.curation.embedding.detector_encoder import DetectorEncoder
from workbench.curation.embedding.embeddings import Embeddings, Tiles
from workbench.curation.embedding.encoder import Encoder, Seen
from workbench.curation.embedding.one_pass import embed

__all__ = ["DetectorEncoder", "Embeddings", "Encoder", "Seen", "Tiles", "embed"]

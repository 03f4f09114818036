"""Embeddings of a pool: encoders, one pass, shards on disk."""

from workbench.curation.embedding.detector_encoder import DetectorEncoder
from workbench.curation.embedding.embeddings import Embeddings, Tiles
from workbench.curation.embedding.encoder import Encoder, Seen
from workbench.curation.embedding.hugging_face import HuggingFaceEncoder
from workbench.curation.embedding.images import BoxSource, ImagePreprocessing
from workbench.curation.embedding.one_pass import embed
from workbench.curation.embedding.onnx_encoder import OnnxEncoder

__all__ = [
    "BoxSource",
    "DetectorEncoder",
    "Embeddings",
    "Encoder",
    "HuggingFaceEncoder",
    "ImagePreprocessing",
    "OnnxEncoder",
    "Seen",
    "Tiles",
    "embed",
]

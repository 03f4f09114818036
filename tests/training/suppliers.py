"""Tiny detection models of other makers, with random weights, as they lie in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

KINDS = ("rt_detr_v2", "d_fine", "detr")


def make(kind: str, folder: Path, *, licence: str | None = "apache-2.0") -> Path:
    """A model folder as the hub has them; without ``licence`` its README names none."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = _config(kind, transformers)
    network = transformers.AutoModelForObjectDetection.from_config(config)
    for values in network.parameters():
        # As after training: where all queries score alike, which of them are taken is chance.
        values.data += 0.1 * torch.randn_like(values)
    network.save_pretrained(folder)
    head = "" if licence is None else f"---\nlicense: {licence}\n---\n"
    (folder / "README.md").write_text(f"{head}# A tiny {kind}\n")
    return folder


def _config(kind: str, transformers: Any) -> Any:
    width, small = 16, {"num_queries": 12, "decoder_layers": 2, "decoder_attention_heads": 2}
    if kind == "detr":
        backbone = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1],
            layer_type="basic", out_features=["stage4"],
        )  # fmt: skip
        return transformers.DetrConfig(
            backbone_config=backbone, d_model=width, encoder_layers=1, encoder_ffn_dim=16,
            decoder_ffn_dim=16, encoder_attention_heads=2, num_labels=3, **small,
        )  # fmt: skip
    shared = {
        "encoder_hidden_dim": width, "encoder_in_channels": [8, 16, 16], "encoder_ffn_dim": 16,
        "encoder_attention_heads": 2, "d_model": width, "decoder_in_channels": [width] * 3,
        "decoder_ffn_dim": 16, "num_denoising": 4, "hidden_expansion": 0.5, "num_labels": 3,
        **small,
        # All cells of 96x64: with fewer, a rounding decides which of an untrained model's, which
        # score alike, are taken.
        "num_queries": 126,
    }  # fmt: skip
    if kind == "d_fine":
        backbone = transformers.HGNetV2Config(
            stem_channels=[3, 8, 8], stage_in_channels=[8, 8, 8, 16],
            stage_mid_channels=[8, 8, 8, 8], stage_out_channels=[8, 8, 16, 16],
            stage_num_blocks=[1, 1, 1, 1], stage_numb_of_layers=[1, 1, 1, 1],
            hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], embedding_size=8,
            out_features=["stage2", "stage3", "stage4"],
        )  # fmt: skip
        return transformers.DFineConfig(backbone_config=backbone, **shared)
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    return transformers.RTDetrV2Config(backbone_config=backbone, **shared)

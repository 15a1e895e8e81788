"""Tiny random checkpoints of SAM 2's and SAM 3's video models, built offline; knows no model card.

Widths are the least that the classes allow: memories have 64 channels, and what attends to them a multiple of that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Sam2VideoConfig, Sam2VideoModel

from tests.tiny_text import clip_tokenizer

POINTS_SIDE_PX, WORDS_SIDE_PX = 128, 112
"""Sides of the squares that the two models look at."""
WIDTH = 128


def _tracker(side_px: int, top: int) -> dict[str, Any]:
    """What both kinds say of memory, prompts and masks; `top`: side of the smallest feature map."""
    return {
        "image_size": side_px,
        "memory_attention_hidden_size": WIDTH, "memory_attention_num_layers": 1,
        "memory_attention_num_attention_heads": 1, "memory_attention_feed_forward_hidden_size": 64,
        "memory_attention_rope_feat_sizes": [top, top], "memory_encoder_hidden_size": WIDTH,
        "memory_encoder_output_channels": 64, "mask_downsampler_embed_dim": WIDTH, "memory_fuser_num_layers": 1,
        "memory_fuser_embed_dim": WIDTH, "memory_fuser_intermediate_dim": 64,
        "prompt_encoder_config": {"hidden_size": WIDTH, "image_size": side_px, "patch_size": side_px // top,
                                  "mask_input_channels": 8},
        "mask_decoder_config": {"hidden_size": WIDTH, "mlp_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                                "iou_head_hidden_dim": 64}}


def _points_config() -> Sam2VideoConfig:
    hiera = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 16, "num_attention_heads": 1,
        "image_size": [POINTS_SIDE_PX] * 2, "patch_kernel_size": [7, 7], "patch_stride": [4, 4],
        "patch_padding": [3, 3], "query_stride": [2, 2], "window_positional_embedding_background_size": [7, 7],
        "num_query_pool_stages": 3, "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 1, 1, 1], "window_size_per_stage": [8, 4, 8, 4],
        "global_attention_blocks": [3]}
    vision = {"backbone_config": hiera, "backbone_channel_list": [128, 64, 32, 16],
              "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]], "fpn_hidden_size": WIDTH,
              "fpn_top_down_levels": [2, 3], "num_feature_levels": 3}
    return Sam2VideoConfig(vision_config=vision, **_tracker(POINTS_SIDE_PX, 8))


def build_points(directory: Path, *, seen: bool = True) -> Path:
    """Write a tiny SAM 2 video model (weights from seed 0) that sees what it looks for everywhere, or nowhere.

    Returns its folder; kept when there.
    """
    target = directory / ("sam2_video" if seen else "sam2_video_blind")
    if not (target / "config.json").exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Sam2VideoModel(_points_config())
            believe(model.mask_decoder, seen=seen)
            model.save_pretrained(target)
    return target


def believe(decoder: Any, *, seen: bool = True) -> None:
    """Random weights are undecided whether a thing is to be seen; these are not."""
    decoder.pred_obj_score_head.proj_out.bias.data.fill_(4.0 if seen else -4.0)


def build_words(directory: Path, *, threshold: float = 0.0) -> Path:
    """Write a tiny SAM 3 video model that takes every score above `threshold` for a find. Needs torchvision."""
    from transformers import Sam2VideoVideoProcessor, Sam3ImageProcessor, Sam3VideoModel, Sam3VideoProcessor

    target = directory / f"sam3_video_{threshold:g}"
    if (target / "config.json").exists():
        return target
    square = {"height": WORDS_SIDE_PX, "width": WORDS_SIDE_PX}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sam3VideoModel(_words_config(threshold))
        believe(model.tracker_model.mask_decoder)
        model.save_pretrained(target)
    tokenizer = clip_tokenizer()
    tokenizer.model_max_length = 32
    Sam3VideoProcessor(
        image_processor=Sam3ImageProcessor(size=square, mask_size={"height": 32, "width": 32}),
        video_processor=Sam2VideoVideoProcessor(size=square, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer=tokenizer).save_pretrained(target)
    return target


def _words_config(threshold: float) -> Any:
    from transformers import Sam3VideoConfig

    top = WORDS_SIDE_PX // 14
    vit = {"model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
           "num_attention_heads": 4, "image_size": WORDS_SIDE_PX, "patch_size": 14, "window_size": 4,
           "global_attn_indexes": [1], "pretrain_image_size": 56}
    vision = {"backbone_config": vit, "fpn_hidden_size": WIDTH,
              "backbone_feature_sizes": [[top * 4] * 2, [top * 2] * 2, [top] * 2],
              "scale_factors": [4.0, 2.0, 1.0, 0.5]}
    small = {"hidden_size": WIDTH, "num_attention_heads": 4, "intermediate_size": 64}
    text = {"model_type": "clip_text_model", "vocab_size": 514, "hidden_size": 32, "intermediate_size": 37,
            "projection_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32,
            "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 1}
    detector = {
        "model_type": "sam3", "vision_config": vision, "text_config": text,
        "geometry_encoder_config": {"num_layers": 1, **small}, "detr_encoder_config": {"num_layers": 1, **small},
        "detr_decoder_config": {"num_layers": 2, "num_queries": 10, **small},
        "mask_decoder_config": {"hidden_size": WIDTH, "num_attention_heads": 4, "num_upsampling_stages": 3}}
    tracker = {"model_type": "sam3_tracker_video", "vision_config": vision, **_tracker(WORDS_SIDE_PX, top)}
    return Sam3VideoConfig(
        detector_config=detector, tracker_config=tracker, low_res_mask_size=top * 4, new_det_thresh=threshold,
        score_threshold_detection=threshold, hotstart_delay=0, hotstart_unmatch_thresh=0, hotstart_dup_thresh=0)

"""The published configurations of the three measured models, and what shrinks each for a dry run on a CPU.

`tests/bench/test_bench_gpu.py` compares the parameters with the sizes in the model cards. Tokenizers are the tests' own
of single letters: the encoders read a padded prompt of the same length whatever the words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    SchedulerMixin,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
    WanTransformer3DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.tiny import sdxl_scheduler, svd_scheduler, unipc
from tests.tiny_text import clip_pictures, clip_tokenizer, t5_tokenizer

Arguments = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One component with weights."""

    model: Callable[..., torch.nn.Module]
    config: Callable[..., object] | None = None
    """Of a transformers model, which takes its arguments in one object."""
    full: Arguments
    tiny: Arguments
    """What a dry run replaces."""

    def make(self, *, tiny: bool) -> torch.nn.Module:
        """On torch's default device, in its default dtype, with the class's own first weights."""
        arguments = {**self.full, **(self.tiny if tiny else {})}
        return self.model(**arguments) if self.config is None else self.model(self.config(**arguments))


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """All of a pipeline's components."""

    denoiser: str
    """The part that runs at every step."""
    parts: Mapping[str, Part]
    scheduler: Callable[[], SchedulerMixin]
    readers: Mapping[str, Callable[[], object]]
    """Tokenizers and picture processors."""
    settings: Arguments = field(default_factory=dict)


def _clip_text(*, projected: bool, full: Arguments) -> Part:
    return Part(
        model=CLIPTextModelWithProjection if projected else CLIPTextModel, config=CLIPTextConfig,
        # The end token is the small tokenizer's: the encoders look for it.
        full={"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 512, "eos_token_id": 513,
              "pad_token_id": 1, **full},
        tiny={"vocab_size": 514, "hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4,
              "num_hidden_layers": 2, "projection_dim": 32})


WAN = Architecture(
    denoiser="transformer",
    parts={
        "transformer": Part(
            model=WanTransformer3DModel,
            full={"patch_size": (1, 2, 2), "num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16,
                  "out_channels": 16, "text_dim": 4096, "freq_dim": 256, "ffn_dim": 8960, "num_layers": 30,
                  "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "eps": 1e-6,
                  "rope_max_seq_len": 1024},
            tiny={"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 32, "ffn_dim": 32, "num_layers": 2}),
        "text_encoder": Part(
            model=UMT5EncoderModel, config=UMT5Config,
            full={"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
                  "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False},
            tiny={"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}),
        "vae": Part(
            model=AutoencoderKLWan,
            full={"base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
                  "temperal_downsample": [False, True, True]},
            tiny={"base_dim": 3, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}),
    },
    scheduler=unipc, readers={"tokenizer": t5_tokenizer})

SVD = Architecture(
    denoiser="unet",
    parts={
        "unet": Part(
            model=UNetSpatioTemporalConditionModel,
            full={"sample_size": 96, "in_channels": 8, "out_channels": 4, "num_frames": 25,
                  "block_out_channels": (320, 640, 1280, 1280), "num_attention_heads": (5, 10, 20, 20),
                  "layers_per_block": 2, "cross_attention_dim": 1024, "addition_time_embed_dim": 256,
                  "projection_class_embeddings_input_dim": 768},
            tiny={"block_out_channels": (32, 64, 64, 64), "num_attention_heads": (2, 4, 4, 4), "layers_per_block": 1,
                  "cross_attention_dim": 32}),
        "image_encoder": Part(
            model=CLIPVisionModelWithProjection, config=CLIPVisionConfig,
            full={"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
                  "patch_size": 14, "image_size": 224, "projection_dim": 1024, "hidden_act": "gelu"},
            tiny={"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
                  "patch_size": 112, "projection_dim": 32}),
        "vae": Part(
            model=AutoencoderKLTemporalDecoder,
            full={"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
                  "down_block_types": ("DownEncoderBlock2D",) * 4, "sample_size": 768, "scaling_factor": 0.18215,
                  "force_upcast": True},
            tiny={"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}),
    },
    scheduler=svd_scheduler, readers={"feature_extractor": clip_pictures})

SDXL = Architecture(
    denoiser="unet",
    parts={
        "unet": Part(
            model=UNet2DConditionModel,
            full={"sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
                  "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20),
                  "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                  "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                  "transformer_layers_per_block": (1, 2, 10), "cross_attention_dim": 2048,
                  "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                  "projection_class_embeddings_input_dim": 2816},
            # Six numbers of 256 and the pooled text of 32.
            tiny={"block_out_channels": (32, 64, 64), "attention_head_dim": (2, 4, 4),
                  "transformer_layers_per_block": (1, 1, 1), "layers_per_block": 1, "cross_attention_dim": 64,
                  "projection_class_embeddings_input_dim": 6 * 256 + 32}),
        "text_encoder": _clip_text(projected=False, full={
            "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12,
            "projection_dim": 768, "hidden_act": "quick_gelu"}),
        "text_encoder_2": _clip_text(projected=True, full={
            "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32,
            "projection_dim": 1280, "hidden_act": "gelu"}),
        "vae": Part(
            model=AutoencoderKL,
            full={"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
                  "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
                  "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
            tiny={"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}),
    },
    scheduler=sdxl_scheduler, readers={"tokenizer": clip_tokenizer, "tokenizer_2": clip_tokenizer},
    settings={"add_watermarker": False})

ARCHITECTURES: Mapping[str, Architecture] = {"wan2.1-t2v-1.3b": WAN, "svd-xt": SVD, "sdxl": SDXL}
"""Card name -> architecture."""

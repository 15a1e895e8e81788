"""Tiny checkpoints of the text-to-image transformers; see `tests.tiny`."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from safetensors.torch import save_file
from transformers import (
    BitImageProcessorPil,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from tests.tiny_text import (
    CHAT_TEMPLATE,
    byte_tokenizer,
    clip_text,
    clip_tokenizer,
    clip_vision_config,
    t5,
    t5_tokenizer,
)

ADAPTER_FILE, ADAPTER_ENCODER = "sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors", "models/image_encoder"
"""As in the repo of the shipped card's adapter."""


def _qwen_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
         "<|video_pad|>"], pad="<|endoftext|>", eos="<|im_end|>", chat=CHAT_TEMPLATE)


def flux() -> DiffusionPipeline:
    """FLUX.1: two text encoders, packed latents; schnell has no guidance embedding."""
    vae = AutoencoderKL(sample_size=32, in_channels=3, out_channels=3, block_out_channels=(4,), layers_per_block=1,
                        latent_channels=1, norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False,
                        shift_factor=0.06, scaling_factor=1.5)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=False)
    return FluxPipeline(scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=clip_text(projected=False),
                        tokenizer=clip_tokenizer(), text_encoder_2=t5(), tokenizer_2=t5_tokenizer(),
                        transformer=transformer)


def z_image() -> DiffusionPipeline:
    """Z-Image: text and picture in one stream, a Qwen 3 as text encoder."""
    vae = AutoencoderKL(sample_size=32, in_channels=3, out_channels=3, block_out_channels=(8, 8), layers_per_block=1,
                        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
                        latent_channels=16, norm_num_groups=4, use_quant_conv=False, use_post_quant_conv=False,
                        shift_factor=0.1, scaling_factor=0.4)
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=16, axes_dims=(8, 4, 4), axes_lens=(1024, 64, 64))
    with torch.no_grad():  # made with torch.empty
        transformer.x_pad_token.zero_()
        transformer.cap_pad_token.zero_()
    text = Qwen3Config(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                       num_key_value_heads=2, head_dim=8, vocab_size=300, max_position_embeddings=1024)
    return ZImagePipeline(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae,
                          text_encoder=Qwen3Model(text).eval(), tokenizer=_qwen_tokenizer(), transformer=transformer)


def qwen_image() -> DiffusionPipeline:
    """Qwen-Image: true guidance beside a negative prompt, packed latents, a Qwen 2.5 VL as text encoder."""
    vae = AutoencoderKLQwenImage(base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1,
                                 temperal_downsample=[False, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4))
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "vocab_size": 300,
            "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()
    return QwenImagePipeline(scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, tokenizer=_qwen_tokenizer(),
                             transformer=transformer, text_encoder=encoder)


def flux2_klein() -> DiffusionPipeline:
    """FLUX.2 klein: reference pictures as further tokens, features of three layers of a Qwen 3 as text."""
    vae = AutoencoderKLFlux2(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                             block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4,
                             sample_size=32)
    transformer = Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False)
    text = Qwen3Config(hidden_size=16, intermediate_size=16, num_hidden_layers=27, num_attention_heads=2,
                       num_key_value_heads=2, head_dim=8, vocab_size=300, max_position_embeddings=1024)
    return Flux2KleinPipeline(scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=vae,
                              text_encoder=Qwen3ForCausalLM(text).eval(), tokenizer=_qwen_tokenizer(),
                              transformer=transformer, is_distilled=True)


def write_ip_adapter(pipe: DiffusionPipeline, directory: Path) -> None:
    """An IP-Adapter Plus for a tiny SDXL, under the names that its authors gave the tensors, and a picture encoder."""
    config = clip_vision_config()
    projection = IPAdapterPlusImageProjection(embed_dims=config.hidden_size, hidden_dims=64, heads=1, num_queries=4,
                                              output_dims=pipe.unet.config.cross_attention_dim)
    tensors = {f"image_proj.{name}": tensor for name, tensor in _authors_names(projection.state_dict()).items()}
    layers = [name for name in pipe.unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(layers):
        attention = pipe.unet.get_submodule(name.removesuffix(".processor"))
        for part, like in (("to_k_ip", attention.to_k), ("to_v_ip", attention.to_v)):
            # Larger than trained ones, so that a few steps of noise show what the picture does.
            tensors[f"ip_adapter.{2 * number + 1}.{part}.weight"] = torch.randn_like(like.weight)
    target = directory / ADAPTER_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, target)
    CLIPVisionModelWithProjection(config).eval().save_pretrained(directory / ADAPTER_ENCODER)


def _authors_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' names of the projection's layers as the authors', keys and values in one tensor."""
    places = {"ln0": "0.norm1", "ln1": "0.norm2", "attn.to_q": "0.to_q", "attn.to_out.0": "0.to_out", "ff.0": "1.0",
              "ff.1.net.0.proj": "1.1", "ff.1.net.2": "1.3"}
    named = {}
    for name, tensor in tensors.items():
        head, _, kind = name.rpartition(".")
        if not name.startswith("layers."):
            named[name] = tensor
            continue
        layer, place = head.removeprefix("layers.").split(".", 1)
        if place in places:
            named[f"layers.{layer}.{places[place]}.{kind}"] = tensor
        elif place == "attn.to_k":
            value = tensors[name.replace("to_k", "to_v")]
            named[f"layers.{layer}.0.to_kv.{kind}"] = torch.cat([tensor, value])
    return named


def write_picture_model(directory: Path, kind: str = "dinov2") -> Path:
    """A picture model of transformers (`dinov2`, `clip`) with its processor, weights from seed 0; its folder."""
    target = directory / kind
    if not target.exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            dino = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=56,
                                patch_size=14)
            model = CLIPVisionModelWithProjection(clip_vision_config()) if kind == "clip" else Dinov2Model(dino)
            model.eval().save_pretrained(target)
        BitImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}).save_pretrained(target)
    return target

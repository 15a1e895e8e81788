"""Tiny random checkpoints of the real diffusers and transformers classes, built offline; knows no model card.

The weights are noise, so the pictures are too; everything else (loops, schedulers, encoders, VAEs) is the real code.
A checkpoint is 15-50 kB of configuration around 0.3-18 MB of weights and runs in milliseconds per step on one CPU core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    ClassifierFreeGuidance,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    StableDiffusionXLPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from transformers import (
    ByT5Tokenizer,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.tiny_edit import flux_kontext, instruct_pix2pix, wan_vace
from tests.tiny_pictures import flux, flux2_klein, qwen_image, write_ip_adapter, z_image
from tests.tiny_text import (
    CHAT_TEMPLATE,
    byte_tokenizer,
    clip_pictures,
    clip_text,
    clip_tokenizer,
    clip_vision_config,
    t5,
    t5_tokenizer,
)


def umt5() -> UMT5EncoderModel:
    """Wan's text encoder, width 32."""
    return UMT5EncoderModel(UMT5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4,
                                       is_encoder_decoder=False)).eval()


def unipc() -> UniPCMultistepScheduler:
    """Wan's scheduler: multistep, so it keeps earlier model outputs."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0,
                                   num_train_timesteps=1000)


def wan_vae() -> AutoencoderKLWan:
    """4x in time, 8x in space."""
    return AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
                            temperal_downsample=[False, True, True])


def wan_transformer(in_channels: int = 16, image_dim: int | None = None) -> WanTransformer3DModel:
    """Two blocks of width 24."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=in_channels, out_channels=16,
        text_dim=32, freq_dim=256, ffn_dim=32, num_layers=2, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32, image_dim=image_dim,
        added_kv_proj_dim=24 if image_dim else None)


def wan_t2v() -> DiffusionPipeline:
    """Wan 2.1 text to video."""
    return WanPipeline(tokenizer=t5_tokenizer(), text_encoder=umt5(), vae=wan_vae(), scheduler=unipc(),
                       transformer=wan_transformer())


def wan_ti2v() -> DiffusionPipeline:
    """Wan 2.2 TI2V (5B): one checkpoint for text to video and image to video, a timestep per token."""
    return WanPipeline(tokenizer=t5_tokenizer(), text_encoder=umt5(), vae=wan_vae(), scheduler=unipc(),
                       transformer=wan_transformer(), expand_timesteps=True)


def wan22_t2v() -> DiffusionPipeline:
    """Wan 2.2 A14B: one transformer for the noisy steps, one for the rest."""
    return WanPipeline(tokenizer=t5_tokenizer(), text_encoder=umt5(), vae=wan_vae(), scheduler=unipc(),
                       transformer=wan_transformer(), transformer_2=wan_transformer(), boundary_ratio=0.875)


def wan22_i2v() -> DiffusionPipeline:
    """Wan 2.2 A14B image to video: as above, without the picture embedding of 2.1."""
    return WanImageToVideoPipeline(
        tokenizer=t5_tokenizer(), text_encoder=umt5(), vae=wan_vae(), scheduler=unipc(),
        transformer=wan_transformer(36), transformer_2=wan_transformer(36), boundary_ratio=0.9)


def wan21_i2v() -> DiffusionPipeline:
    """Wan 2.1 image to video: mask and first frame as channels, a CLIP picture embedding."""
    return WanImageToVideoPipeline(
        tokenizer=t5_tokenizer(), text_encoder=umt5(), vae=wan_vae(), scheduler=unipc(),
        transformer=wan_transformer(36, 32), image_encoder=CLIPVisionModel(clip_vision_config()).eval(),
        image_processor=clip_pictures())


def svd_scheduler() -> EulerDiscreteScheduler:
    """Karras sigmas up to 700, timesteps that are no whole numbers."""
    return EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", interpolation_type="linear",
        prediction_type="v_prediction", sigma_max=700.0, sigma_min=0.002, steps_offset=1, timestep_spacing="leading",
        timestep_type="continuous", use_karras_sigmas=True)


def svd() -> DiffusionPipeline:
    """Stable Video Diffusion: no prompt, no interrupt, Karras sigmas."""
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=[32, 32], in_channels=3, out_channels=3, layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 2, latent_channels=4)
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=32, in_channels=8, out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), cross_attention_dim=32,
        num_attention_heads=8, projection_class_embeddings_input_dim=96, addition_time_embed_dim=32)
    return StableVideoDiffusionPipeline(
        vae=vae, image_encoder=CLIPVisionModelWithProjection(clip_vision_config()).eval(), unet=unet,
        scheduler=svd_scheduler(), feature_extractor=clip_pictures())


def _sdxl(scheduler: EulerDiscreteScheduler | EulerAncestralDiscreteScheduler) -> DiffusionPipeline:
    vae = AutoencoderKL(block_out_channels=[32, 64], in_channels=3, out_channels=3, latent_channels=4, sample_size=64,
                        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=32, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=80,
        cross_attention_dim=64)
    return StableDiffusionXLPipeline(
        vae=vae, text_encoder=clip_text(projected=False), text_encoder_2=clip_text(projected=True),
        tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer(), unet=unet, scheduler=scheduler)


def sdxl_scheduler() -> EulerDiscreteScheduler:
    """Euler over the noise schedule that it was trained with."""
    return EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, steps_offset=1, beta_schedule="scaled_linear",
                                  timestep_spacing="leading")


def sdxl() -> DiffusionPipeline:
    """Stable Diffusion XL."""
    return _sdxl(sdxl_scheduler())


def sdxl_turbo() -> DiffusionPipeline:
    """SDXL Turbo: its scheduler draws fresh noise at every step."""
    return _sdxl(EulerAncestralDiscreteScheduler(beta_start=0.00085, beta_end=0.012, steps_offset=1,
                                                 beta_schedule="scaled_linear", timestep_spacing="trailing"))


def ltx() -> DiffusionPipeline:
    """LTX-Video: packed latents."""
    vae = AutoencoderKLLTXVideo(
        in_channels=3, out_channels=3, latent_channels=8, block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4, layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
        timestep_conditioning=False, patch_size=1, patch_size_t=1, encoder_causal=True, decoder_causal=False)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, num_layers=2, caption_channels=32)
    return LTXPipeline(scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=t5(),
                       tokenizer=t5_tokenizer(), transformer=transformer)


def _gemma() -> Gemma3ForConditionalGeneration:
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 300, "max_position_embeddings": 2048,
            "layer_types": ["sliding_attention", "full_attention"], "pad_token_id": 256, "eos_token_id": 257,
            "bos_token_id": 258}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}
    return Gemma3ForConditionalGeneration(Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=263, boi_token_index=261,
        eoi_token_index=262)).eval()


def _ltx2_connectors() -> LTX2TextConnectors:
    return LTX2TextConnectors(
        caption_channels=32, text_proj_in_factor=3, video_connector_num_attention_heads=4,
        video_connector_attention_head_dim=8, video_connector_num_layers=1,
        video_connector_num_learnable_registers=None, audio_connector_num_attention_heads=4,
        audio_connector_attention_head_dim=8, audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None, connector_rope_base_seq_len=32, rope_theta=10000.0,
        rope_double_precision=False, causal_temporal_positioning=False, rope_type="split")


def _ltx2_audio() -> tuple[AutoencoderKLLTX2Audio, LTX2Vocoder]:
    vae = AutoencoderKLLTX2Audio(
        base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1, attn_resolutions=None, in_channels=2,
        resolution=32, latent_channels=2, norm_type="pixel", causality_axis="height", dropout=0.0,
        mid_block_add_attention=False, sample_rate=16000, mel_hop_length=160, is_causal=True, mel_bins=8)
    vocoder = LTX2Vocoder(
        in_channels=16, hidden_channels=32, out_channels=2, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2],
        resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], leaky_relu_negative_slope=0.1,
        output_sampling_rate=16000)
    return vae, vocoder


def ltx2() -> DiffusionPipeline:
    """LTX-2: pictures and sound; the loop steps the scheduler and a deep copy of it."""
    tokenizer = byte_tokenizer(["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<boi>", "<eoi>", "<img>"],
                               pad="<pad>", eos="<eos>", side="left")
    transformer = LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, patch_size=1, patch_size_t=1, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2,
        audio_attention_head_dim=4, audio_cross_attention_dim=8, num_layers=2, qk_norm="rms_norm_across_heads",
        caption_channels=32, rope_double_precision=False, rope_type="split")
    vae = AutoencoderKLLTX2Video(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,),
        layers_per_block=(1,), decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,), decoder_inject_noise=(False, False), downsample_type=("spatial",),
        upsample_residual=(False,), upsample_factor=(1,), timestep_conditioning=False, patch_size=1, patch_size_t=1,
        encoder_causal=True, decoder_causal=False)
    audio_vae, vocoder = _ltx2_audio()
    return LTX2Pipeline(transformer=transformer, vae=vae, audio_vae=audio_vae,
                        scheduler=FlowMatchEulerDiscreteScheduler(), text_encoder=_gemma(), tokenizer=tokenizer,
                        connectors=_ltx2_connectors(), vocoder=vocoder)


def hv15() -> DiffusionPipeline:
    """HunyuanVideo 1.5: no callback argument at all, guidance in a component of its own."""
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
        num_refiner_layers=1, mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=16, text_embed_2_dim=32,
        image_embed_dim=12, rope_axes_dim=(2, 2, 4), target_size=16, task_type="t2v").eval()
    vae = AutoencoderKLHunyuanVideo15(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(16, 16), layers_per_block=1,
        spatial_compression_ratio=4, temporal_compression_ratio=2, downsample_match_channel=False,
        upsample_match_channel=False).eval()
    text = Qwen2_5_VLTextConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=300, rope_parameters={"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6})
    tokenizer = byte_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
         "<|video_pad|>"], pad="<|endoftext|>", eos="<|im_end|>", chat=CHAT_TEMPLATE)
    return HunyuanVideo15Pipeline(
        transformer=transformer, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=Qwen2_5_VLTextModel(text).eval(), text_encoder_2=t5(384), tokenizer=tokenizer,
        tokenizer_2=ByT5Tokenizer(), guider=ClassifierFreeGuidance(guidance_scale=4.0))


FAMILIES: Mapping[str, Callable[[], DiffusionPipeline]] = {
    "wan_t2v": wan_t2v, "wan_ti2v": wan_ti2v, "wan21_i2v": wan21_i2v, "wan22_t2v": wan22_t2v,
    "wan22_i2v": wan22_i2v, "svd": svd, "sdxl": sdxl, "sdxl_turbo": sdxl_turbo, "ltx": ltx, "ltx2": ltx2, "hv15": hv15,
    "flux": flux, "flux2_klein": flux2_klein, "z_image": z_image, "qwen_image": qwen_image, "sdxl_ip_adapter": sdxl,
    "instruct_pix2pix": instruct_pix2pix, "flux_kontext": flux_kontext, "wan_vace": wan_vace,
}


def build(family: str, directory: Path) -> Path:
    """Write the family's checkpoint below `directory` (weights from seed 0); return its folder. Kept when there."""
    target = directory / family
    if not (target / "model_index.json").exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            FAMILIES[family]().save_pretrained(target)
    return target


def build_ip_adapter(directory: Path) -> Path:
    """Write an IP-Adapter for the tiny SDXL below `directory` (weights from seed 0); return its folder."""
    target = directory / "ip_adapter"
    if not target.exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            write_ip_adapter(sdxl(), target)
    return target

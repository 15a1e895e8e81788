"""SketchCodec: clips to latents and back, 4x8x8 pixels per latent pixel. Knows nothing of text or of noise.

The encoder is linear: the first principal components of space-time patches, which are little more than their mean
colours. It has no state between latent frames, so the last frame is as good as the first, and a still picture is the
first frame of a clip. The decoder is the transposed encoder plus a convolutional correction that draws the edges anew;
it looks at the latent frames before and after too, from which it knows where things move. It has the interface that
diffusers' Wan pipelines use of AutoencoderKLWan, at a hundredth of the cost on a CPU.

With few and smooth channels the denoiser only has to paint a thumbnail, and learns that in minutes; more channels
(twelve were tried) hold finer detail, but left alone they are noise that it takes hours to tame.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import nn
from torch.nn import functional

CONTEXT = 3
"""Latent frames that the decoder sees: the one before, the one it draws, the one after."""
FINE_PX = 4
"""The correction works on pixels folded 4 x 4 into channels, where a convolution is cheap."""


class _Residual(nn.Module):
    """Two normalised 3x3 convolutions around a shortcut; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape in and out, (B, width, h, w)."""
        x = x + self.conv2(functional.silu(self.norm2(self.conv1(functional.silu(self.norm1(x))))))
        return x


class SketchDecoder(nn.Module):
    """One latent frame to its frames: transposed encoder plus a correction that starts at zero."""

    def __init__(self, z_dim: int, patch_px: int, patch_frames: int, width: int) -> None:
        super().__init__()
        self.patch_px, half, lift = patch_px, width // 2, patch_px // FINE_PX
        channels = 3 * patch_frames
        self.linear = nn.Linear(z_dim, channels * patch_px * patch_px)
        self.conv_in = nn.Conv2d(CONTEXT * z_dim, width, 3, padding=1)
        self.coarse = nn.Sequential(_Residual(width), _Residual(width))
        self.rise = nn.Sequential(nn.Conv2d(width, half * lift * lift, 3, padding=1), nn.PixelShuffle(lift))
        self.look = nn.Sequential(nn.PixelUnshuffle(FINE_PX),
                                  nn.Conv2d(channels * FINE_PX * FINE_PX, half, 3, padding=1))
        self.fine = nn.Sequential(_Residual(half), _Residual(half), _Residual(half))
        self.conv_out = nn.Sequential(nn.GroupNorm(8, half), nn.SiLU(),
                                      nn.Conv2d(half, channels * FINE_PX * FINE_PX, 3, padding=1),
                                      nn.PixelShuffle(FINE_PX))
        nn.init.zeros_(self.conv_out[2].weight)
        nn.init.zeros_(self.conv_out[2].bias)

    def forward(self, raw_BCHW: torch.Tensor, normal_BCHW: torch.Tensor) -> torch.Tensor:
        """Frames stacked as channels, (B, patch_frames * 3, H, W), not clamped.

        `raw_BCHW` is a latent frame as encoded; `normal_BCHW` the one before, itself and the one after, stacked, with
        unit statistics.
        """
        patches = self.linear(raw_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        plain = functional.pixel_shuffle(patches, self.patch_px)
        hidden = self.rise(self.coarse(self.conv_in(normal_BCHW))) + self.look(plain)
        return plain + self.conv_out(self.fine(hidden))


class SketchCodec(ModelMixin, ConfigMixin):
    """Clips (B, 3, 4n+1, H, W) in -1..1 to latents (B, z_dim, n+1, H/8, W/8) and back; H, W multiples of 16."""

    @register_to_config
    def __init__(self, z_dim: int = 3, width: int = 64,
                 latents_mean: tuple[float, ...] = (0.0,) * 3, latents_std: tuple[float, ...] = (1.0,) * 3,
                 scale_factor_spatial: int = 8, scale_factor_temporal: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Linear(3 * scale_factor_temporal * scale_factor_spatial**2, z_dim)
        self.decoder = SketchDecoder(z_dim, scale_factor_spatial, scale_factor_temporal, width)

    def patches(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        """Space-time patches (B, n+1, H/8, W/8, values); the first frame stands for four equal ones."""
        count = self.config.scale_factor_temporal
        first = clip_BCTHW[:, :, :1].expand(-1, -1, count, -1, -1)
        chunks = torch.cat([first, clip_BCTHW[:, :, 1:]], 2).unfold(2, count, count)
        batch, channels, latents, height, width, _ = chunks.shape
        stacked = chunks.permute(0, 2, 5, 1, 3, 4).reshape(batch * latents, count * channels, height, width)
        values = functional.pixel_unshuffle(stacked, self.config.scale_factor_spatial).permute(0, 2, 3, 1)
        return values.unflatten(0, (batch, latents))

    def latents(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        """The latents of clips, as encoded."""
        return self.encoder(self.patches(clip_BCTHW)).permute(0, 4, 1, 2, 3)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[Any, ...]:
        """The latent distribution of clips; it has no spread to speak of, so its mode is the latent."""
        mean = self.latents(x)
        spread = DiagonalGaussianDistribution(torch.cat([mean, torch.full_like(mean, -30.0)], 1))
        return AutoencoderKLOutput(latent_dist=spread) if return_dict else (spread,)

    def decode_free(self, z: torch.Tensor) -> torch.Tensor:
        """Clips from latents as encoded, without the clamp that would stop gradients; the decoder runs per frame."""
        mean = torch.tensor(self.config.latents_mean, dtype=z.dtype, device=z.device)[:, None, None, None]
        std = torch.tensor(self.config.latents_std, dtype=z.dtype, device=z.device)[:, None, None, None]
        normal = (z - mean) / std
        padded = torch.cat([normal[:, :, :1], normal, normal[:, :, -1:]], 2)
        chunks = []
        for index in range(z.shape[2]):
            context = padded[:, :, index:index + CONTEXT].transpose(1, 2).flatten(1, 2)
            stacked = self.decoder(z[:, :, index], context)
            chunks.append(stacked.unflatten(1, (self.config.scale_factor_temporal, 3)).transpose(1, 2))
        chunks[0] = chunks[0].mean(2, keepdim=True)
        return torch.cat(chunks, 2)

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Any, ...]:
        """Clips in -1..1 from latents as encoded.

        The decoder runs once per latent frame, so a hook on it can count progress as with AutoencoderKLWan.
        """
        clip = self.decode_free(z).clamp(-1, 1)
        return DecoderOutput(sample=clip) if return_dict else (clip,)


def fit_linear(clips_BCTHW: torch.Tensor, z_dim: int = 3, flatten: float = 0.3) -> SketchCodec:
    """A codec whose encoder is the principal component analysis of `clips_BCTHW` and whose correction is still zero.

    `flatten` (0..1) is how far the latents' spectrum is levelled by `latents_std`: 0 keeps the shape of the spectrum,
    so fine detail stays quiet beside layout; 1 gives every channel unit variance.
    """
    probe = SketchCodec(z_dim=z_dim, latents_mean=(0.0,) * z_dim, latents_std=(1.0,) * z_dim)
    values = probe.patches(clips_BCTHW).flatten(0, 3)
    centre = values.mean(0)
    _, basis = torch.linalg.eigh(torch.cov(values.T))
    basis = basis[:, -z_dim:].flip(1)
    spread = ((values - centre) @ basis).std(0)
    std = spread**flatten * spread[0] ** (1 - flatten)
    codec = SketchCodec(z_dim=z_dim, latents_mean=(0.0,) * z_dim, latents_std=tuple(std.tolist()))
    with torch.no_grad():
        codec.encoder.weight.copy_(basis.T)
        codec.encoder.bias.copy_(-centre @ basis)
        codec.decoder.linear.weight.copy_(basis)
        codec.decoder.linear.bias.copy_(centre)
    return codec

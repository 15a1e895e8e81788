"""SketchCodec: clips to latents and back, 8 frames of 16x16 pixels per latent pixel. Knows nothing of text or of noise.

The encoder is a small convolutional network over eight frames at a time; the first frame of a clip stands for eight
equal ones, so a still picture is the first frame of a clip, and no state is carried from one latent frame to the next.
The decoder draws in layers: a smooth ground, a smooth paint and a sharp matte that says where the paint is. The matte
is an upsampled field passed through a sigmoid, so an edge stays an edge however uncertain the latents are, and a wall
stays one colour.

It has the interface that diffusers' Wan pipelines use of AutoencoderKLWan, at a hundredth of the cost on a CPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import nn
from torch.nn import functional

FOLD_PX = 4
"""The network works on a half-size picture folded 4 x 4 into channels: an eighth of the clip's resolution."""
FINE, MIDDLE, COARSE = 64, 128, 128
"""Channels at an eighth, a sixteenth and a thirty-second of the clip's resolution."""


class _Residual(nn.Module):
    """Two normalised 3x3 convolutions around a shortcut; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape in and out, (B, width, h, w)."""
        return x + self.conv2(functional.silu(self.norm2(self.conv1(functional.silu(self.norm1(x))))))


def _down(narrow: int, wide: int) -> nn.Module:
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * narrow, wide, 1))


def _up(wide: int, narrow: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(wide, 4 * narrow, 1), nn.PixelShuffle(2))


class SketchEncoder(nn.Module):
    """Eight frames to one latent frame."""

    def __init__(self, z_dim: int, frames: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(FOLD_PX), nn.Conv2d(3 * frames * FOLD_PX**2, FINE, 1),
            _Residual(FINE), _Residual(FINE), _down(FINE, MIDDLE),
            _Residual(MIDDLE), _Residual(MIDDLE), _down(MIDDLE, COARSE),
            _Residual(COARSE), _Residual(COARSE),
            nn.GroupNorm(8, COARSE), nn.SiLU(), nn.Conv2d(COARSE, 4 * z_dim, 1), nn.PixelShuffle(2))

    def forward(self, stacked_BCHW: torch.Tensor) -> torch.Tensor:
        """Half-size frames stacked as channels (B, frames * 3, H/2, W/2) to (B, z_dim, H/16, W/16)."""
        return self.layers(stacked_BCHW)


class Drawing(NamedTuple):
    """What the decoder draws of one latent frame; F frames."""

    ground: torch.Tensor
    """(B, 3, H/16, W/16), -1..1 or a little outside."""
    paint: torch.Tensor
    """(B, F, 3, H/16, W/16), the same range."""
    edge: torch.Tensor
    """(B, F, H/2, W/2): the matte before its sigmoid; positive inside the object."""

    def frames(self) -> torch.Tensor:
        """The layers brought to full size and laid over each other, (B, F, 3, H, W)."""
        matte = functional.interpolate(self.edge.float(), scale_factor=2.0, mode="bilinear").sigmoid()[:, :, None]
        size = matte.shape[-2:]
        ground = functional.interpolate(self.ground.float(), size=size, mode="bilinear")[:, None]
        paint = functional.interpolate(self.paint.float().flatten(1, 2), size=size, mode="bilinear")
        return ground + (paint.unflatten(1, (-1, 3)) - ground) * matte


class SketchDecoder(nn.Module):
    """One latent frame to eight frames, in layers."""

    def __init__(self, z_dim: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.coarse = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * z_dim, COARSE, 3, padding=1),
                                    _Residual(COARSE), _Residual(COARSE))
        self.middle = nn.Sequential(_up(COARSE, MIDDLE), _Residual(MIDDLE), _Residual(MIDDLE))
        self.fine = nn.Sequential(_up(MIDDLE, FINE), _Residual(FINE), _Residual(FINE), _Residual(FINE))
        self.colours = nn.Sequential(nn.GroupNorm(8, MIDDLE), nn.SiLU(),
                                     nn.Conv2d(MIDDLE, 3 + 3 * frames, 3, padding=1))
        self.edge = nn.Sequential(nn.GroupNorm(8, FINE), nn.SiLU(),
                                  nn.Conv2d(FINE, frames * FOLD_PX**2, 3, padding=1), nn.PixelShuffle(FOLD_PX))

    def forward(self, normal_BCHW: torch.Tensor) -> Drawing:
        """Draw one latent frame (B, z_dim, H/16, W/16) of unit statistics."""
        middle = self.middle(self.coarse(normal_BCHW))
        colours = self.colours(middle)
        return Drawing(ground=colours[:, :3], paint=colours[:, 3:].unflatten(1, (self.frames, 3)),
                       edge=self.edge(self.fine(middle)))


class SketchCodec(ModelMixin, ConfigMixin):
    """Clips (B, 3, 8n+1, H, W) in -1..1 to latents (B, z_dim, n+1, H/16, W/16) and back; H, W multiples of 32."""

    @register_to_config
    def __init__(self, z_dim: int = 3,
                 latents_mean: tuple[float, ...] = (0.0,) * 3, latents_std: tuple[float, ...] = (1.0,) * 3,
                 scale_factor_spatial: int = 16, scale_factor_temporal: int = 8) -> None:
        super().__init__()
        self.encoder = SketchEncoder(z_dim, scale_factor_temporal)
        self.decoder = SketchDecoder(z_dim, scale_factor_temporal)

    def chunks(self, half_BCTHW: torch.Tensor) -> torch.Tensor:
        """A half-size clip in the encoder's portions, (B, n+1, frames * 3, H/2, W/2); the first frame stands for
        eight."""
        count = self.config.scale_factor_temporal
        first = half_BCTHW[:, :, :1].expand(-1, -1, count, -1, -1)
        frames = torch.cat([first, half_BCTHW[:, :, 1:]], 2).transpose(1, 2)
        return frames.unflatten(1, (-1, count)).flatten(2, 3)

    def latents_of_half(self, half_BCTHW: torch.Tensor) -> torch.Tensor:
        """The latents of clips that are given at half their size, as training draws them."""
        chunks = self.chunks(half_BCTHW)
        return self.encoder(chunks.flatten(0, 1)).unflatten(0, chunks.shape[:2]).transpose(1, 2)

    def latents(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        """The latents of clips, as encoded."""
        return self.latents_of_half(functional.avg_pool3d(clip_BCTHW, (1, 2, 2)))

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[Any, ...]:
        """The latent distribution of clips; it has no spread to speak of, so its mode is the latent."""
        mean = self.latents(x)
        spread = DiagonalGaussianDistribution(torch.cat([mean, torch.full_like(mean, -30.0)], 1))
        return AutoencoderKLOutput(latent_dist=spread) if return_dict else (spread,)

    def normal(self, z: torch.Tensor) -> torch.Tensor:
        """Latents as encoded to latents of unit statistics, (B, z_dim, ...)."""
        shape = (-1, *(1,) * (z.ndim - 2))
        mean, std = (torch.tensor(values, dtype=z.dtype, device=z.device).view(shape)
                     for values in (self.config.latents_mean, self.config.latents_std))
        return (z - mean) / std

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Any, ...]:
        """Clips in -1..1 from latents as encoded.

        The decoder runs once per latent frame, so a hook on it can count progress as with AutoencoderKLWan.
        """
        parts = [self.decoder(one).frames().to(z.dtype) for one in self.normal(z).unbind(2)]
        parts[0] = parts[0].mean(1, keepdim=True)
        clip = torch.cat(parts, 1).transpose(1, 2).clamp(-1, 1)
        return DecoderOutput(sample=clip) if return_dict else (clip,)

"""The codec's training: `codec` fits encoder and decoder together, `decoder` polishes the decoder alone at full size.

The layers a scene was drawn from are known, so the decoder is told its ground, paint and matte apart, at the sizes at
which it draws them; putting the picture together costs more than the network and is left to the polish.

Latents carry noise in both, so the decoder learns to tidy up what a denoiser leaves undecided. `Reader` makes every
latent pixel tell what is seen: colour, shape, background, motion. What all latent pixels agree on, a denoiser learns
long before it learns what only some of them know.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from configs.prompt_world import PromptWorld
from serve_app.models.sketch import scenes
from serve_app.models.sketch.codec import Drawing, SketchCodec
from serve_app.models.sketch.run import Clock, Plan, Progress, log, rate, save_state
from serve_app.models.sketch.scenes import STILL, Layers, Scene

BATCH = 40
POLISH_CLIPS = 4
STATISTICS_CLIPS = 200
LATENT_NOISE = 0.35
"""Most noise on latents, in units of their standard deviation; more than a trained denoiser's own error."""
READER_WEIGHT = 0.08
Z_DIM = 4
STILL_SHARE = 0.1
FIRST_FRAME_SHARE = 0.3


class Reader(nn.Module):
    """Reads a scene from one latent pixel (two by two latents, the denoiser's token), linearly. Thrown away later."""

    def __init__(self, world: PromptWorld, z_dim: int) -> None:
        super().__init__()
        self.names = (list(world.colours), list(world.objects), list(world.backgrounds), [STILL, *world.motions])
        self.heads = nn.ModuleList(nn.Linear(4 * z_dim, len(names)) for names in self.names)

    def loss(self, normal_BCHW: torch.Tensor, shown: list[Scene], first: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Cross-entropy of all answers, and the share of right ones about the shape. `first`: no motion to be read."""
        tokens = functional.pixel_unshuffle(normal_BCHW, 2).flatten(2).transpose(1, 2)
        said = [(scene.colour, scene.shape, scene.background, scene.motion) for scene in shown]
        total, right = normal_BCHW.new_zeros(()), 0.0
        for place, (head, names) in enumerate(zip(self.heads, self.names, strict=True)):
            answer = torch.tensor([names.index(one[place]) for one in said], device=tokens.device)
            logits = head(tokens)
            each = functional.cross_entropy(logits.flatten(0, 1), answer.repeat_interleave(tokens.shape[1]),
                                            reduction="none").unflatten(0, tokens.shape[:2]).mean(1)
            total = total + (each[~first].mean() if names[0] == STILL else each.mean())
            if place == 1:
                right = (logits.argmax(-1) == answer[:, None]).float().mean().item()
        return total, right


def draw_chunks(world: PromptWorld, rng: random.Random, count: int, device: torch.device,
                ) -> tuple[Layers, list[Scene], torch.Tensor]:
    """Half-size layers of one latent frame's eight frames each, what they show, and which are first frames."""
    shown, layouts = scenes.draw_scenes(world, rng, count, still_share=STILL_SHARE)
    chunks = [0 if rng.random() < FIRST_FRAME_SHARE else rng.choice((1, 2)) for _ in range(count)]
    steps = torch.arange(1, 9) / (scenes.FRAMES - 1)
    times = torch.stack([torch.zeros(8) if chunk == 0 else steps + (chunk - 1) / 2 for chunk in chunks])
    first = torch.tensor([chunk == 0 for chunk in chunks], device=device)
    return scenes.draw_layers(shown, layouts, world, times.to(device), shrink=2), shown, first


def layer_loss(drawing: Drawing, layers: Layers) -> torch.Tensor:
    """How far ground, paint (where it is seen) and matte are from those the scene was drawn from."""
    matte = layers.matte_BCTHW[:, 0]
    fold = matte.shape[-1] // drawing.ground.shape[-1]
    seen = functional.avg_pool2d(matte, fold)[:, :, None]
    paint = functional.avg_pool3d(layers.paint_BCTHW, (1, fold, fold)).transpose(1, 2)
    ground = functional.avg_pool2d(layers.ground_BCTHW[:, :, 0], fold)
    edge = functional.binary_cross_entropy_with_logits(drawing.edge.float(), matte)
    paint_error = ((drawing.paint.float() - paint).square() * seen).sum() / (3 * seen.sum())
    return edge + 0.3 * paint_error + 0.3 * (drawing.ground.float() - ground).square().mean()


def with_noise(normal: torch.Tensor) -> torch.Tensor:
    """Latents with up to LATENT_NOISE of noise, another amount for each sample."""
    amount = LATENT_NOISE * torch.rand(len(normal), *(1,) * (normal.ndim - 1), device=normal.device)
    return normal + amount * torch.randn_like(normal)


class CodecRun:
    """Codec and reader in training, and what a resumed run needs."""

    def __init__(self, plan: Plan, world: PromptWorld) -> None:
        self._state_path, self.progress = plan.out / "codec_state.pt", Progress()
        blank = SketchCodec(z_dim=Z_DIM, latents_mean=(0.0,) * Z_DIM, latents_std=(1.0,) * Z_DIM)
        self.codec = blank.to(plan.device, memory_format=torch.channels_last)
        self.reader = Reader(world, Z_DIM).to(plan.device)
        self.trained = [*self.codec.parameters(), *self.reader.parameters()]
        self.optimizer = torch.optim.AdamW(self.trained, lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=1e-3)

    def save(self) -> None:
        """All that --resume needs."""
        save_state({"codec": self.codec.state_dict(), "reader": self.reader.state_dict(),
                    "optimizer": self.optimizer.state_dict(), "progress": self.progress.state()}, self._state_path)

    def load(self) -> bool:
        """Take up a saved run; False when there is none."""
        if not self._state_path.exists():
            return False
        state = torch.load(self._state_path, weights_only=True)
        self.codec.load_state_dict(state["codec"])
        self.reader.load_state_dict(state["reader"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress.from_state(**state["progress"])
        return True


def train_codec(plan: Plan, world: PromptWorld, *, resume: bool) -> None:
    """Train encoder and decoder for the plan's minutes; DIR/codec when done."""
    torch.manual_seed(plan.seed)
    run = CodecRun(plan, world)
    if resume and run.load():
        log.info("resumed at step %d, %.0f s", run.progress.step, run.progress.elapsed_s)
    rng = random.Random(plan.seed + run.progress.step)
    codec, reader, progress = run.codec, run.reader, run.progress
    clock, saved_s = Clock(progress), progress.elapsed_s
    while progress.elapsed_s < 60 * plan.minutes:
        layers, shown, first = draw_chunks(world, rng, BATCH, plan.device)
        stacked = layers.clip().transpose(1, 2).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        with torch.autocast(plan.device.type, dtype=torch.bfloat16):
            z = codec.encoder(stacked).float()
            noisy = with_noise((z - z.mean((0, 2, 3), keepdim=True)) / z.std((0, 2, 3), keepdim=True))
            drawing = codec.decoder(noisy)
        seen = layer_loss(drawing, layers)
        read, right = reader.loss(noisy, shown, first)
        _update(run.optimizer, seen + READER_WEIGHT * read, run.trained, rate(plan, progress))
        progress.elapsed_s = clock.elapsed_s()
        progress.note(seen.item(), "codec", f"read {read.item():.3f} shape {right:.3f}")
        if progress.elapsed_s - saved_s > 60 * plan.save_every_minutes:
            run.save()
            saved_s = progress.elapsed_s
    run.save()
    measured(codec, world, plan.device).save_pretrained(plan.out / "codec")
    progress.save_curve(plan.out / "codec_curve.json")


def polish_decoder(plan: Plan, world: PromptWorld) -> None:
    """Train the decoder alone on whole clips at full size; latents stay what a denoiser was trained on."""
    torch.manual_seed(plan.seed + 1)
    rng, progress = random.Random(plan.seed + 1), Progress()
    codec = load_codec(plan.out).to(plan.device, memory_format=torch.channels_last)
    trained = list(codec.decoder.parameters())
    optimizer = torch.optim.AdamW(trained, lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=1e-3)
    clock = Clock(progress)
    while progress.elapsed_s < 60 * plan.minutes:
        clips = scenes.draw_batch(world, rng, POLISH_CLIPS, still_share=STILL_SHARE)[0].to(plan.device)
        with torch.autocast(plan.device.type, dtype=torch.bfloat16):
            with torch.no_grad():
                latents = codec.normal(codec.latents(clips).float())
            drawn = codec.decoder(with_noise(latents).transpose(1, 2).flatten(0, 1))
        frames = drawn.frames().unflatten(0, (len(clips), -1))
        whole = torch.cat([frames[:, 0].mean(1, keepdim=True), frames[:, 1:].flatten(1, 2)], 1).transpose(1, 2)
        error = whole - clips
        # The first frame is one of seventeen, and the one that image-to-video must keep.
        loss = error.square().mean() + 0.1 * error.abs().mean() + 0.3 * error[:, :, 0].square().mean()
        _update(optimizer, loss, trained, rate(plan, progress))
        progress.elapsed_s = clock.elapsed_s()
        progress.note(loss.item(), "decoder")
    codec.save_pretrained(plan.out / "codec")
    progress.save_curve(plan.out / "decoder_curve.json")
    if (plan.out / "pipeline").exists():
        copy.deepcopy(codec).half().save_pretrained(plan.out / "pipeline" / "vae")


def measured(codec: SketchCodec, world: PromptWorld, device: torch.device) -> SketchCodec:
    """The codec with the mean and spread of its latents in its configuration."""
    with torch.no_grad():
        parts = [codec.latents(scenes.draw_batch(world, random.Random(seed), 10)[0].to(device))
                 for seed in range(STATISTICS_CLIPS // 10)]
    latents = torch.cat(parts).transpose(0, 1).flatten(1)
    codec.register_to_config(latents_mean=tuple(latents.mean(1).tolist()), latents_std=tuple(latents.std(1).tolist()))
    return codec


def load_codec(out: Path) -> SketchCodec:
    """The codec of a run. It forgets where it lay: that is nobody's business who gets its configuration."""
    codec = SketchCodec.from_pretrained(out / "codec")
    codec.register_to_config(_name_or_path="")
    return codec


def _update(optimizer: torch.optim.Optimizer, loss: torch.Tensor, trained: list[nn.Parameter], rate_now: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate_now
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()

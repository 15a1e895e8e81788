"""Trains the sketch model from nothing on drawn scenes: `python -m serve_app.models.sketch.train --out DIR`.

Two stages. `codec` fits the linear codec in seconds, then trains its decoder's correction. `denoiser` trains the text
encoder and the transformer together by flow matching. Both write a loadable pipeline to DIR/pipeline as they go, and
both continue with --resume. The denoiser sees only the linear encoder, so the decoder may be trained before or after.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn import functional

from configs.model_card import PromptWorld
from serve_app.models.sketch import scenes
from serve_app.models.sketch.codec import SketchCodec, fit_linear
from serve_app.models.sketch.parts import MAX_TOKENS, Parts, build_parts, save_parts

log = logging.getLogger("sketch.train")

FIT_CLIPS = 300
CODEC_BATCH = 8
LATENT_NOISE = 0.35
"""Most noise on latents in the decoder's training, in units of `latents_std`; about the denoiser's own error."""
POOL_CLIPS = 6_000
"""Encoded clips kept in memory; a few are redrawn at every step, since drawing costs as much as a sixth of a step."""
FRESH_CLIPS = 4
TOKENS_PER_BATCH = 2304
TOKENS_PER_LATENT_FRAME = 24
MAX_BATCH = 96
STILL_SHARE = 0.1
CAPTION_DROP = 0.1
"""Share of training captions replaced by the empty one, for classifier-free guidance."""
IMAGE_SHARE = 0.25
"""Share of clips whose first latent frame is given clean at time 0, as image-to-video gives it."""
OBJECT_WEIGHT = 3.0
CLIP_NORM = 1.0
LOG_EVERY = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long and where a run trains; times are of the whole run, resumed parts included."""

    out: Path
    minutes: float
    save_every_minutes: float = 5.0
    seed: int = 0
    learning_rate: float = 1.5e-3


@dataclass(slots=True)
class Progress:
    """Where a run is; saved with the weights."""

    step: int = 0
    elapsed_s: float = 0.0
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    """(step, seconds, smoothed loss), one row per LOG_EVERY steps."""
    smooth: float = math.nan

    def note(self, loss: float, label: str) -> None:
        """Count one step and log now and then."""
        self.smooth = loss if math.isnan(self.smooth) else 0.98 * self.smooth + 0.02 * loss
        if self.step % LOG_EVERY == 0:
            self.curve.append((self.step, round(self.elapsed_s, 1), round(self.smooth, 6)))
            log.info("%s step %d  %.0f s  loss %.5f", label, self.step, self.elapsed_s, self.smooth)
        self.step += 1


def rate(plan: Plan, progress: Progress, warm_up_steps: int = 100) -> float:
    """Learning rate now: a linear warm-up, then a slow fall to 2 % at the end of the run's time."""
    left = max(0.02, 1 - progress.elapsed_s / (60 * plan.minutes))
    return plan.learning_rate * min(1.0, (progress.step + 1) / warm_up_steps) * left**0.8


# ---- codec ---------------------------------------------------------------------------------------------------------


def load_codec(out: Path) -> SketchCodec:
    """The codec of a run. It forgets where it lay: that is nobody's business who gets its configuration."""
    codec = SketchCodec.from_pretrained(out / "codec")
    codec.register_to_config(_name_or_path="")
    return codec


def codec_loss(codec: SketchCodec, clips_BCTHW: torch.Tensor, noise: float) -> torch.Tensor:
    """Squared plus absolute error, edges weighted up; latents carry `noise` so that the decoder learns to tidy up."""
    with torch.no_grad():
        latents = codec.latents(clips_BCTHW)
        std = torch.tensor(codec.config.latents_std)[:, None, None, None]
        latents = latents + noise * torch.rand(len(latents), 1, 1, 1, 1) * std * torch.randn_like(latents)
        across = functional.pad((clips_BCTHW[..., 1:] - clips_BCTHW[..., :-1]).abs(), (0, 1))
        down = functional.pad((clips_BCTHW[..., 1:, :] - clips_BCTHW[..., :-1, :]).abs(), (0, 0, 0, 1))
        weight = 1 + 2 * (across + down).sum(1, keepdim=True).clamp(max=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        error = (codec.decode_free(latents).float() - clips_BCTHW).abs() * weight
    return (error.square() + 0.1 * error).mean()


def train_codec(plan: Plan, world: PromptWorld, *, resume: bool) -> SketchCodec:
    """Fit the linear codec (or take DIR/codec when resuming) and train its decoder for the plan's minutes."""
    home, rng = plan.out / "codec", random.Random(plan.seed)
    if resume and home.exists():
        codec = load_codec(plan.out)
    else:
        codec = fit_linear(scenes.draw_batch(world, rng, FIT_CLIPS)[0])
        codec.save_pretrained(home)
    trained = list(codec.decoder.parameters())
    optimizer = torch.optim.AdamW(trained, lr=plan.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    progress, start = Progress(), time.monotonic()
    while progress.elapsed_s < 60 * plan.minutes:
        for group in optimizer.param_groups:
            group["lr"] = rate(plan, progress, warm_up_steps=20)
        loss = codec_loss(codec, scenes.draw_batch(world, rng, CODEC_BATCH)[0], noise=LATENT_NOISE)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        optimizer.step()
        progress.elapsed_s = time.monotonic() - start
        progress.note(loss.item(), "codec")
    codec.save_pretrained(home)
    if (plan.out / "pipeline").exists():
        copy.deepcopy(codec).half().save_pretrained(plan.out / "pipeline" / "vae")
    (plan.out / "codec_curve.json").write_text(json.dumps(progress.curve))
    return codec


# ---- denoiser ------------------------------------------------------------------------------------------------------


class LatentPool:
    """Encoded training clips with what they show; old ones give way to freshly drawn ones."""

    def __init__(self, codec: SketchCodec, world: PromptWorld, rng: random.Random, size: int) -> None:
        self._codec, self._world, self._rng = codec, world, rng
        self._mean = torch.tensor(codec.config.latents_mean)[:, None, None, None]
        self._std = torch.tensor(codec.config.latents_std)[:, None, None, None]
        parts = [self._draw(100) for _ in range(size // 100)]
        self._latents = torch.cat([latents for latents, _ in parts])
        self._scenes = [scene for _, group in parts for scene in group]

    def _draw(self, count: int) -> tuple[torch.Tensor, list[scenes.Scene]]:
        clip, shown = scenes.draw_batch(self._world, self._rng, count, still_share=STILL_SHARE)
        with torch.no_grad():
            latents = self._codec.latents(clip)
        return (latents - self._mean) / self._std, shown

    def refresh(self, count: int) -> None:
        """Replace `count` random clips by new ones."""
        latents, shown = self._draw(count)
        for one, scene in zip(latents, shown, strict=True):
            place = self._rng.randrange(len(self._scenes))
            self._latents[place], self._scenes[place] = one, scene

    def batch(self, count: int, latent_frames: int) -> tuple[torch.Tensor, list[str]]:
        """`count` clips cut to their first latent frames, with new captions.

        A clip's start is coded as that of a shorter clip would be, so one pool serves every length.
        """
        places = [self._rng.randrange(len(self._scenes)) for _ in range(count)]
        captions = [scenes.training_caption(self._scenes[i], self._world, self._rng) for i in places]
        return self._latents[places, :, :latent_frames], captions


def draw_length(rng: random.Random, done: float) -> int:
    """Latent frames (1..3) of the next batch; pictures first, since they teach colour and place three times faster."""
    return rng.choices((1, 2, 3), (55, 5, 40) if done < 0.3 else (15, 10, 75))[0]


def flow_loss(parts: Parts, latents: torch.Tensor, captions: list[str]) -> torch.Tensor:
    """Mean squared error of the velocity; times lean to high noise, where layout is decided.

    Some clips are posed as image-to-video poses them: first latent frame clean, its tokens at time 0 and unpaid.
    """
    count, _, frames, height, width = latents.shape
    said = [text if torch.rand(()) > CAPTION_DROP else "" for text in captions]
    tokens = parts.tokenizer(said, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    sigma = torch.sigmoid(torch.randn(count) * 1.2 + 0.8)
    noisy_frames = torch.ones(count, frames)
    if frames > 1:
        noisy_frames[torch.rand(count) < IMAGE_SHARE, 0] = 0
    level = (sigma[:, None] * noisy_frames)[:, None, :, None, None]
    noise = torch.randn_like(latents)
    times = (1000 * sigma[:, None] * noisy_frames).repeat_interleave((height // 2) * (width // 2), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        text = parts.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        text = text * tokens.attention_mask[..., None]
        velocity = parts.transformer(hidden_states=(1 - level) * latents + level * noise, timestep=times,
                                     encoder_hidden_states=text, return_dict=False)[0]
    error = ((velocity.float() - (noise - latents)).square() * object_weight(latents)).mean((1, 3, 4))
    return (error * noisy_frames).sum() / noisy_frames.sum()


def object_weight(latents: torch.Tensor) -> torch.Tensor:
    """1 on the background up to OBJECT_WEIGHT on the object, (B, 1, T, h, w).

    An object covers a tenth of the picture; without this the background is learned first and the object much later.
    """
    ground = latents.flatten(2).median(2).values[:, :, None, None, None]
    apart = (latents - ground).square().sum(1, keepdim=True).clamp(max=1)
    return 1 + (OBJECT_WEIGHT - 1) * apart


class DenoiserRun:
    """Text encoder and denoiser in training: optimizer, moving average, and what a resumed run needs."""

    def __init__(self, plan: Plan, parts: Parts) -> None:
        self._plan, self._parts = plan, parts
        self._state_path = plan.out / "denoiser_state.pt"
        image, text = list(parts.transformer.parameters()), list(parts.text_encoder.parameters())
        self._weights = image + text
        self._optimizer = torch.optim.AdamW([{"params": image, "scale": 1.0}, {"params": text, "scale": 3.0}],
                                            lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
        self._average = [weight.detach().clone() for weight in self._weights]
        self.progress = Progress()

    def step(self, loss: torch.Tensor) -> None:
        """One update of the weights and of their moving average."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate(self._plan, self.progress) * group["scale"]
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._weights, CLIP_NORM)
        self._optimizer.step()
        keep = min(0.998, (self.progress.step + 1) / (self.progress.step + 20))
        torch._foreach_lerp_(self._average, [weight.detach() for weight in self._weights], 1 - keep)

    def save(self) -> None:
        """Write the averaged weights as a pipeline, the loss curve, and all that --resume needs."""
        live = [weight.detach().clone() for weight in self._weights]
        self._put(self._average)
        save_parts(self._parts, self._plan.out / "pipeline")
        self._put(live)
        (self._plan.out / "denoiser_curve.json").write_text(json.dumps(self.progress.curve))
        torch.save({"weights": live, "average": self._average, "optimizer": self._optimizer.state_dict(),
                    "step": self.progress.step, "elapsed_s": self.progress.elapsed_s, "curve": self.progress.curve,
                    "smooth": self.progress.smooth}, self._state_path)

    def load(self) -> bool:
        """Take up a saved run; False when there is none."""
        if not self._state_path.exists():
            return False
        state = torch.load(self._state_path, weights_only=True)
        self._put(state["weights"])
        self._average = state["average"]
        self._optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(step=state["step"], elapsed_s=state["elapsed_s"],
                                 curve=[tuple(row) for row in state["curve"]], smooth=state["smooth"])
        return True

    def _put(self, values: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for weight, value in zip(self._weights, values, strict=True):
                weight.copy_(value)


def train_denoiser(plan: Plan, world: PromptWorld, codec: SketchCodec, *, resume: bool) -> None:
    """Train text encoder and denoiser until the run has used its minutes."""
    torch.manual_seed(plan.seed)
    parts = build_parts(world, codec.eval())
    # The fused CPU kernel is slow backwards; the plain one is 1.7 times faster in training.
    parts.transformer.set_attention_backend("_native_math")
    run = DenoiserRun(plan, parts)
    if resume and run.load():
        log.info("resumed at step %d, %.0f s", run.progress.step, run.progress.elapsed_s)
    rng = random.Random(plan.seed + run.progress.step)
    torch.manual_seed(plan.seed + run.progress.step)
    pool = LatentPool(codec, world, rng, POOL_CLIPS)
    parts.transformer.train()
    parts.text_encoder.train()
    before, start = run.progress.elapsed_s, time.monotonic()
    saved_s = before
    while run.progress.elapsed_s < 60 * plan.minutes:
        frames = draw_length(rng, run.progress.elapsed_s / (60 * plan.minutes))
        count = min(MAX_BATCH, TOKENS_PER_BATCH // (TOKENS_PER_LATENT_FRAME * frames))
        pool.refresh(FRESH_CLIPS)
        loss = flow_loss(parts, *pool.batch(count, frames))
        run.step(loss)
        run.progress.elapsed_s = before + time.monotonic() - start
        run.progress.note(loss.item(), "denoiser")
        if run.progress.elapsed_s - saved_s > 60 * plan.save_every_minutes:
            run.save()
            saved_s = run.progress.elapsed_s
    run.save()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory for the pipeline, the curves and the state")
    parser.add_argument("--stage", choices=("all", "codec", "denoiser"), default="all")
    parser.add_argument("--minutes", type=float, default=40.0, help="the denoiser's time, resumed parts included")
    parser.add_argument("--codec-minutes", type=float, default=8.0)
    parser.add_argument("--save-every", type=float, default=5.0, help="minutes between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # tiny moments of rare words would slow every step
    args.out.mkdir(parents=True, exist_ok=True)
    world = scenes.load_world()
    if args.stage in ("all", "codec"):
        train_codec(Plan(out=args.out, minutes=args.codec_minutes, seed=args.seed), world, resume=args.resume)
    if args.stage in ("all", "denoiser"):
        plan = Plan(out=args.out, minutes=args.minutes, seed=args.seed, save_every_minutes=args.save_every)
        train_denoiser(plan, world, load_codec(args.out), resume=args.resume)


if __name__ == "__main__":
    main()

"""The denoiser's training: text encoder and transformer together, by flow matching on the codec's latents.

Hidden matrices are trained by Muon, which needs about half of AdamW's steps here, the rest by AdamW. Scenes are drawn
and encoded as training goes on and none is thrown away, so the set grows by a few clips with every step.
"""

from __future__ import annotations

import random

import torch

from configs.prompt_world import PromptWorld
from serve_app.models.sketch import scenes
from serve_app.models.sketch.codec import SketchCodec
from serve_app.models.sketch.parts import MAX_TOKENS, Parts, build_parts, save_parts
from serve_app.models.sketch.run import Clock, Plan, Progress, log, rate, save_state

FIRST_CLIPS = 2_000
CLIPS_PER_STEP = 5
MOST_CLIPS = 60_000
TOKENS_PER_BATCH = 3456
TOKENS_PER_LATENT_FRAME = 24
STILL_SHARE = 0.1
CAPTION_DROP = 0.1
"""Share of training captions replaced by the empty one, for classifier-free guidance."""
IMAGE_SHARE = 0.25
"""Share of batches of clips whose first latent frame is given clean at time 0, as image-to-video gives it."""
TEXT_RATE = 2.0
"""Learning rate of text and of everything that is no hidden matrix, relative to the plan's."""
CLIP_NORM = 1.0


class LatentSet:
    """Encoded training clips with what they show."""

    def __init__(self, codec: SketchCodec, world: PromptWorld, rng: random.Random, device: torch.device) -> None:
        self._codec, self._world, self._rng, self._device = codec, world, rng, device
        self._latents: list[torch.Tensor] = []
        self._scenes: list[scenes.Scene] = []
        for _ in range(FIRST_CLIPS // 50):
            self.grow(50)

    def grow(self, count: int) -> None:
        """Draw and encode `count` more clips."""
        shown, layouts = scenes.draw_scenes(self._world, self._rng, count, still_share=STILL_SHARE)
        times = torch.linspace(0, 1, scenes.FRAMES, device=self._device).expand(count, -1)
        half = scenes.draw_layers(shown, layouts, self._world, times, shrink=2).clip()
        with torch.no_grad(), torch.autocast(self._device.type, dtype=torch.bfloat16):
            latents = self._codec.normal(self._codec.latents_of_half(half).float())
        room = MOST_CLIPS - len(self._scenes)
        if room >= count:
            self._latents += latents.unbind(0)
            self._scenes += shown
            return
        for one, scene in zip(latents, shown, strict=True):
            place = self._rng.randrange(len(self._scenes))
            self._latents[place], self._scenes[place] = one, scene

    def batch(self, count: int, latent_frames: int) -> tuple[torch.Tensor, list[str]]:
        """`count` clips cut to their first latent frames, with new captions.

        A clip's start is coded as that of a shorter clip would be, so one set serves every length.
        """
        places = [self._rng.randrange(len(self._scenes)) for _ in range(count)]
        captions = [scenes.training_caption(self._scenes[i], self._world, self._rng) for i in places]
        return torch.stack([self._latents[i][:, :latent_frames] for i in places]), captions


def draw_length(rng: random.Random, done: float) -> int:
    """Latent frames (1..3) of the next batch; pictures first, since they teach colour, shape and place three times
    faster."""
    return rng.choices((1, 2, 3), (55, 5, 40) if done < 0.2 else (15, 10, 75))[0]


def flow_loss(parts: Parts, latents: torch.Tensor, captions: list[str], *, given_first: bool) -> torch.Tensor:
    """Mean squared error of the velocity; times lean to high noise, where layout is decided.

    `given_first` poses the clips as image-to-video does: first latent frame clean, its tokens at time 0 and unpaid.
    """
    count, _, frames, height, width = latents.shape
    said = [text if torch.rand(()) > CAPTION_DROP else "" for text in captions]
    tokens = parts.tokenizer(said, padding="max_length", max_length=MAX_TOKENS, truncation=True,
                             return_tensors="pt").to(latents.device)
    sigma = torch.sigmoid(torch.randn(count, device=latents.device) * 1.2 + 0.8)
    noisy_frames = torch.ones(count, frames, device=latents.device)
    times = 1000 * sigma
    if given_first:
        noisy_frames[:, 0] = 0
        times = (times[:, None] * noisy_frames).repeat_interleave(height * width // 4, dim=1)
    level = (sigma[:, None] * noisy_frames)[:, None, :, None, None]
    noise = torch.randn_like(latents)
    with torch.autocast(latents.device.type, dtype=torch.bfloat16):
        text = parts.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        text = text * tokens.attention_mask[..., None]
        velocity = parts.transformer(hidden_states=(1 - level) * latents + level * noise, timestep=times,
                                     encoder_hidden_states=text, return_dict=False)[0]
    error = (velocity.float() - (noise - latents)).square().mean((1, 3, 4))
    return (error * noisy_frames).sum() / noisy_frames.sum()


class DenoiserRun:
    """Text encoder and denoiser in training: optimizers, moving average, and what a resumed run needs."""

    def __init__(self, plan: Plan, parts: Parts) -> None:
        self._plan, self._parts = plan, parts
        self._state_path = plan.out / "denoiser_state.pt"
        self._weights = [*parts.transformer.parameters(), *parts.text_encoder.parameters()]
        matrices = [weight for weight in parts.transformer.blocks.parameters() if weight.ndim == 2]
        hidden = {id(weight) for weight in matrices}
        rest = [weight for weight in self._weights if id(weight) not in hidden]
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.Muon(matrices, lr=plan.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"), 1.0),
            (torch.optim.AdamW(rest, lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.0), TEXT_RATE)]
        self._average = [weight.detach().clone() for weight in self._weights]
        self.progress = Progress()

    def step(self, loss: torch.Tensor) -> None:
        """One update of the weights and of their moving average."""
        for optimizer, scale in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate(self._plan, self.progress) * scale
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._weights, CLIP_NORM)
        for optimizer, _ in self._optimizers:
            optimizer.step()
        keep = min(0.997, (self.progress.step + 1) / (self.progress.step + 20))
        torch._foreach_lerp_(self._average, [weight.detach() for weight in self._weights], 1 - keep)

    def save(self) -> None:
        """Write the averaged weights as a pipeline, the loss curve, and all that --resume needs."""
        live = [weight.detach().clone() for weight in self._weights]
        self._put(self._average)
        save_parts(self._parts, self._plan.out / "pipeline")
        self._put(live)
        self.progress.save_curve(self._plan.out / "denoiser_curve.json")
        save_state({"weights": live, "average": self._average, "progress": self.progress.state(),
                    "optimizers": [optimizer.state_dict() for optimizer, _ in self._optimizers]}, self._state_path)

    def load(self) -> bool:
        """Take up a saved run; False when there is none."""
        if not self._state_path.exists():
            return False
        state = torch.load(self._state_path, weights_only=True, map_location=self._plan.device)
        self._put(state["weights"])
        self._average = state["average"]
        for (optimizer, _), saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.progress = Progress.from_state(**state["progress"])
        return True

    def _put(self, values: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for weight, value in zip(self._weights, values, strict=True):
                weight.copy_(value)


def train_denoiser(plan: Plan, world: PromptWorld, codec: SketchCodec, *, resume: bool) -> None:
    """Train text encoder and denoiser until the stage has used its minutes; DIR/pipeline along the way."""
    torch.manual_seed(plan.seed)
    parts = build_parts(world, codec.eval().to(plan.device))
    parts.transformer.to(plan.device).train()
    parts.text_encoder.to(plan.device).train()
    if plan.device.type == "cpu":
        # The fused CPU kernel is slow backwards; the plain one is 1.7 times faster in training.
        parts.transformer.set_attention_backend("_native_math")
    # Eight times faster on a CPU: outside of a compiled block every bfloat16 weight is converted anew at each use.
    parts.transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
    run = DenoiserRun(plan, parts)
    if resume and run.load():
        log.info("resumed at step %d, %.0f s", run.progress.step, run.progress.elapsed_s)
    rng = random.Random(plan.seed + run.progress.step)
    torch.manual_seed(plan.seed + run.progress.step)
    clips, clock = LatentSet(codec, world, rng, plan.device), Clock(run.progress)
    saved_s = run.progress.elapsed_s
    while run.progress.elapsed_s < 60 * plan.minutes:
        frames = draw_length(rng, run.progress.elapsed_s / (60 * plan.minutes))
        clips.grow(CLIPS_PER_STEP)
        latents, captions = clips.batch(TOKENS_PER_BATCH // (TOKENS_PER_LATENT_FRAME * frames), frames)
        loss = flow_loss(parts, latents, captions, given_first=frames > 1 and rng.random() < IMAGE_SHARE)
        run.step(loss)
        run.progress.elapsed_s = clock.elapsed_s()
        run.progress.note(loss.item(), "denoiser")
        if run.progress.elapsed_s - saved_s > 60 * plan.save_every_minutes:
            run.save()
            saved_s = run.progress.elapsed_s
    run.save()

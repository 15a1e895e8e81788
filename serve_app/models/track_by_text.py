"""Words to masks over time: SAM 3's video model. Knows no job, no store, no Ray.

The model looks for the words in every frame and follows what it has found. It is asked frame by frame, not through its
iterator, which holds frames back until it knows which finds to drop; they are dropped here when the clip is over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from configs.model_card import ModelCard
from serve_app.models.tap import Watch
from serve_app.models.tracking import (
    FrameClock,
    FramesOnDemand,
    Gathered,
    forget,
    mask_input,
    pieces_of,
    reach_of,
    require_fit,
)
from workflows.edit_doors import find_problems
from workflows.edit_ports import Find, ProgressCallback, Tracked
from workflows.errors import Problem, RenderRefused
from workflows.media.frames import UInt8Array

MOST_OBJECTS = 32
"""Followed at once; the best ones. The checkpoint's own limit is thousands, and memory grows with it."""
LONG_AGO = -(10**6)
"""A frame before which what is carried over was found, so that it is not on probation as new finds are."""


class TextTracker:
    """Implements `workflows.edit_ports.Tracker`. One call at a time, always on the same thread."""

    def __init__(self, card: ModelCard, model: Any, processor: Any, device: str) -> None:
        self._card = card
        self._model = model
        self._processor = processor
        self._device = device
        model.max_num_objects = min(int(model.max_num_objects), MOST_OBJECTS)
        _keep_to_installed_code()

    def problems(self, find: Find) -> tuple[Problem, ...]:
        """See `Tracker`."""
        return find_problems(self._card, find)

    @torch.inference_mode()
    def track(self, frames_THWC: UInt8Array, find: Find, *, carried: UInt8Array | None = None,
              progress_callback: ProgressCallback | None = None, watch: Watch) -> Tracked:
        """See `Tracker`. What `carried` shows is followed besides what the words find."""
        require_fit(frames_THWC, carried, watch)
        if problems := self.problems(find):
            raise RenderRefused(node_id=watch.label, reason="; ".join(problem.render() for problem in problems))
        frames, height_px, width_px = frames_THWC.shape[:3]
        session = self._session(frames_THWC, find.prompt)
        gathered, clock = Gathered(frames, height_px, width_px), FrameClock(frames, progress_callback, watch)
        self._follow_on(session, carried, find)
        with self._best_score() as best:
            for frame in range(frames):
                output = self._model(inference_session=session, frame_idx=frame)
                shown = self._processor.postprocess_outputs(session, output)
                for obj, score, mask_HW in zip(shown["object_ids"].tolist(), shown["scores"].tolist(), shown["masks"],
                                               strict=True):
                    gathered.add(obj, frame, mask_HW.cpu().numpy(), score)
                forget(session, frame, reach=reach_of(self._model.tracker_model.config))
                clock.looked()
        gathered.drop(session.removed_obj_ids)
        return gathered.tracked(find.instances, best_score=max(best), carried=carried)

    def _session(self, frames_THWC: UInt8Array, prompt: str) -> Any:
        dtype, reading = self._model.dtype, self._processor.video_processor
        session = self._processor.init_video_session(inference_device=self._device, dtype=dtype)
        session.video_height, session.video_width = frames_THWC.shape[1:3]
        session.processed_frames = FramesOnDemand(
            frames_THWC, side_px=int(reading.size["height"]), mean=reading.image_mean, std=reading.image_std,
            device=self._device, dtype=dtype)
        return self._processor.add_text_prompt(session, prompt)

    def _follow_on(self, session: Any, carried: UInt8Array | None, find: Find) -> None:
        """Give the session what the clip before ended with, as if it had found it itself before frame 0."""
        pieces = pieces_of(carried, find.instances)
        if not pieces:
            return
        model = self._model
        seen = model.detector_model.get_vision_features(pixel_values=session.get_frame(0)[None])
        features, positions = model.get_vision_features_for_tracker(vision_embeds=seen)
        session.cache.cache_vision_features(0, {"vision_feats": features, "vision_pos_embeds": positions})
        side_px = int(model.tracker_model.config.image_size)
        for obj, piece_HW in enumerate(pieces):
            index = session.obj_id_to_idx(obj)
            session.add_mask_inputs(index, 0, mask_input(piece_HW, side_px, self._device))
            session.obj_id_to_prompt_id[obj] = 0
            session.obj_id_to_score[obj] = 1.0
            session.obj_first_frame_idx[obj] = LONG_AGO + obj
            session.trk_keep_alive[obj] = model.init_trk_keep_alive
        session.max_obj_id = len(pieces) - 1
        session.obj_with_new_inputs = list(range(len(pieces)))
        model.tracker_model(inference_session=session, frame_idx=0, run_mem_encoder=True)

    @contextmanager
    def _best_score(self) -> Iterator[list[float]]:
        """Best probability per frame of anything that was looked at, whether it was good enough or not."""
        best = [0.0]

        def look(_module: torch.nn.Module, _arguments: Any, output: Any) -> None:
            scores = output.pred_logits.float().sigmoid() * output.presence_logits.float().sigmoid()
            best.append(float(scores.max()))

        hook = self._model.detector_model.register_forward_hook(look)
        try:
            yield best
        finally:
            hook.remove()


def _keep_to_installed_code() -> None:
    """With the package `kernels` transformers would fetch compiled code from the hub for small repairs of masks.

    No code that comes from a hub is run; without it the repairs are left out, as on machines without the package.
    """
    from transformers.models.sam3_video import modeling_sam3_video

    modeling_sam3_video.cv_utils_kernel = False

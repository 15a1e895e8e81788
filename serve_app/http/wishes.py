"""Reads what clients of OpenAI's API ask for: every wrong field is told by name, with what to do instead."""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import TypeVar

from pydantic import BaseModel, JsonValue, ValidationError

from serve_app.http.problems import MAX_DETAILS, Detail, Refused
from serve_app.service.films import read_json
from serve_app.service.wishes import FIELD_OF
from workflows.errors import InvalidDocument
from workflows.source import closest, shortened

W = TypeVar("W", bound=BaseModel)
BRACKETS = re.compile(r"(\w{1,40})\[(\w{1,40})\]")
EXTRAS = ("extra_body", "extra_params")
"""Objects whose fields count as the request's own; in a form, as JSON text."""
_KNOB = "say {} instead"
_SILENT = "films have no sound here; leave it out"
_START = "only a first frame is taken; send the picture as input_reference"
_UNGUIDED = "no model here takes control signals or masks; say it in the prompt"
_SAMPLER = "the model's card decides this; leave it out"
_SMOOTHER = "leave it out, or send the film to POST /api/films with `interpolate: 2`"
_STORED = "the server keeps the files; leave it out, and download the content"
_UNEDITED = "pictures are drawn from the prompt alone; leave it out"
_ONE_ANSWER = "nothing is streamed; leave it out"
COMMON_ADVICE: Mapping[str, str] = {
    "steps": _KNOB.format("num_inference_steps"), "cfg_scale": _KNOB.format("guidance_scale"),
    "guidance_scale_2": _KNOB.format("guidance_scale"), "true_cfg_scale": _KNOB.format("guidance_scale"),
    "generator_device": "the seed alone decides the noise; leave it out",
    "boundary_ratio": _SAMPLER, "flow_shift": _SAMPLER, "diffusers_kwargs": _SAMPLER,
    "lora": "a model card names its weights; leave it out, or ask for another model",
    "enable_teacache": "steps are not cached; ask for fewer num_inference_steps",
    "output_path": _STORED, "moderation": "nothing is moderated here; leave it out", "stream": _ONE_ANSWER,
    "aspect_ratio": _KNOB.format("size"), "resolution": _KNOB.format("size"),
}
"""Fields that other servers have -> what to do here."""
VIDEO_ADVICE: Mapping[str, str] = {
    **COMMON_ADVICE, "duration": _KNOB.format("seconds"), "frames": _KNOB.format("num_frames"),
    "n": "one request makes one video; send it again with another seed",
    "num_outputs_per_prompt": "one request makes one video; send it again with another seed",
    "reference_url": _START, "image_url": _START, "image": _START, "image_reference": _START,
    "video_reference": _START, "source_video": _START, "audio_reference": _SILENT, "source_audio": _SILENT,
    "generate_sound": _SILENT, "sound_duration": _SILENT, "audio_noise_mask": _SILENT,
    "control_reference": _UNGUIDED, "control_type": _UNGUIDED, "video_noise_mask": _UNGUIDED,
    "enable_frame_interpolation": _SMOOTHER, "frame_interpolation_exp": _SMOOTHER,
    "frame_interpolation_scale": _SMOOTHER, "frame_interpolation_model_path": _SMOOTHER,
    "quality": "the server's setting media.crf decides it; leave it out",
    "output_quality": "the server's setting media.crf decides it; leave it out",
    "output_compression": "the server's setting media.crf decides it; leave it out",
    "characters": "describe them in the prompt, or send the film to POST /api/films with `characters`",
}

_OF_THE_VIDEO = "an edit keeps it as the video has it; leave it out"
EDIT_ADVICE: Mapping[str, str] = {
    **{name: advice for name, advice in VIDEO_ADVICE.items() if advice is not _START and advice is not _SILENT},
    **dict.fromkeys(("size", "fps"), _OF_THE_VIDEO),
    **dict.fromkeys(("seconds", "duration"), "the part is said by start_s and end_s"),
    **dict.fromkeys(("num_frames", "frames"), _KNOB.format("max_frames")),
    **dict.fromkeys(("source_video", "video_reference", "input_video", "reference_url"), _KNOB.format("video")),
    **dict.fromkeys(("mask", "video_noise_mask"), "say mask_prompt, or send masks as mask_video"),
    **dict.fromkeys(("input_reference", "image", "image_url", "image_reference"),
                    "no picture guides an edit here; say it in the prompt"),
    **dict.fromkeys(("source_audio", "audio_reference", "audio_noise_mask", "generate_sound", "sound_duration"),
                    "the sound stays as it is, or goes with keep_audio=false"),
    "strength": _KNOB.format("image_guidance_scale"),
    "characters": "describe them in the prompt",
}
IMAGE_ADVICE: Mapping[str, str] = {
    **COMMON_ADVICE, "style": "say it in the prompt", "background": "pictures are opaque; leave it out",
    "num_images": _KNOB.format("n"), "num_outputs_per_prompt": _KNOB.format("n"), "partial_images": _ONE_ANSWER,
    "image": _UNEDITED, "mask": _UNEDITED, "reference_url": _UNEDITED, "input_reference": _UNEDITED,
    **dict.fromkeys(("num_frames", "fps", "seconds"), "pictures do not move; POST /v1/videos makes videos"),
}


def read_wish(kind: type[W], fields: Mapping[str, JsonValue], advice: Mapping[str, str]) -> W:
    """What is asked for. Raises Refused with everything that is wrong; `advice` is for fields that `kind` lacks."""
    flat, wrong = _flat(fields)
    try:
        wish = kind.model_validate(flat)
    except ValidationError as error:
        for found in error.errors(include_url=False)[:MAX_DETAILS]:
            name = ".".join(str(part) for part in found["loc"])
            if found["type"] == "extra_forbidden":
                wrong.append(_unknown(name, kind, advice))
            else:
                text = found["msg"].removeprefix("Value error, ")
                wrong.append(Detail(detail=f"{name}: {text}", parameter=name, code="invalid_value"))
    if wrong:
        raise refused(wrong)
    return wish


def refused_wish(error: InvalidDocument, names: Mapping[str, str] = FIELD_OF) -> Refused:
    """What the model cannot do, in the request's own words; `names`: what it calls our fields."""
    details = [Detail(detail=f"{found.problem}{_nearest(found.nearest)}", nearest=found.nearest, code="invalid_value",
                      parameter=names.get(found.field, found.field)) for found in error.problems]
    # Several pictures are several shots, and what is wrong with all is said once.
    return refused(list(dict.fromkeys(details)))


def refused(wrong: list[Detail]) -> Refused:
    """All that is wrong, the first in front."""
    wrong = wrong[:MAX_DETAILS]
    more = f" (and {len(wrong) - 1} more, see errors)" if len(wrong) > 1 else ""
    return Refused(400, wrong[0].code, wrong[0].detail + more, errors=wrong)


def refused_field(name: str, problem: str, nearest: str = "") -> Refused:
    """One field is wrong."""
    return refused([Detail(detail=f"{name}: {problem}{_nearest(nearest)}", parameter=name, nearest=nearest,
                           code="invalid_value")])


def data_in(name: str, url: str) -> bytes:
    """The bytes of a data: URL in the field `name`. Raises Refused for any other: nothing is fetched for others."""
    head, comma, text = url.partition(",")
    if not head.lower().startswith("data:"):
        raise refused_field(name, "the server fetches nothing; send the picture itself, as a file in a form or as",
                            "data:image/png;base64,...")
    if not comma or not head.lower().endswith(";base64"):
        raise refused_field(name, "only base64 is read", "data:image/png;base64,...")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise refused_field(name, "what follows the comma is no base64") from None


def no_model(model: str, known: str, status: int) -> Refused:
    """There is no such model for this."""
    text = f"there is no model {shortened(model)!r} for this here{_nearest(known)}"
    return Refused(status, "model_not_found", text, errors=[Detail(detail=text, parameter="model", nearest=known)])


def _nearest(value: str) -> str:
    return f"; nearest valid: {value}" if value else ""


def _unknown(name: str, kind: type[BaseModel], advice: Mapping[str, str]) -> Detail:
    instead = advice.get(name, "")
    near = "" if instead else closest(name, kind.model_fields)
    instead = instead or f"leave it out{_nearest(near) or '; known: ' + ', '.join(kind.model_fields)}"
    return Detail(detail=f"{shortened(name)} is not supported here: {instead}", parameter=shortened(name),
                  nearest=near, code="unsupported_parameter")


def _flat(fields: Mapping[str, JsonValue]) -> tuple[dict[str, JsonValue], list[Detail]]:
    """The fields with extra objects and aliases taken apart, and what is wrong with those."""
    flat = _nested({name: value for name, value in fields.items() if name not in EXTRAS})
    wrong = [wrong for extra in EXTRAS if extra in fields for wrong in _merge(flat, extra, fields[extra])]
    width, height = flat.pop("width", None), flat.pop("height", None)
    if width is not None or height is not None:
        if flat.get("size") is not None or width is None or height is None:
            wrong.append(Detail(detail="give size alone, or width and height", parameter="size", code="invalid_value"))
        else:
            flat["size"] = f"{width}x{height}"
    return flat, wrong


def _nested(fields: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Forms have `a[b]` for what is `{"a": {"b": ...}}` in JSON; beside an `a` it stays, and is refused."""
    nested: dict[str, JsonValue] = {}
    for name, value in sorted(fields.items(), key=lambda field: BRACKETS.fullmatch(field[0]) is not None):
        match = BRACKETS.fullmatch(name)
        inner = nested.setdefault(match[1], {}) if match else None
        if match and isinstance(inner, dict):
            inner[match[2]] = value
        else:
            nested[name] = value
    return nested


def _merge(flat: dict[str, JsonValue], extra: str, value: JsonValue) -> Iterator[Detail]:
    if isinstance(value, str):
        with contextlib.suppress(InvalidDocument):
            value = read_json(value, "extra.json")
    if not isinstance(value, dict):
        yield Detail(detail=f"{extra} is a JSON object of fields", parameter=extra, code="invalid_value")
        return
    for name, inner in value.items():
        if name in flat or name in EXTRAS:
            yield Detail(detail=f"{shortened(name)} stands in {extra} and elsewhere too; give it once",
                         parameter=shortened(name), code="invalid_value")
        else:
            flat[name] = inner

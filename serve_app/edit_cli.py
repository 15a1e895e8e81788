"""`reelray edit`: change something in a video by saying what. Its options are the fields of an edit's request."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from serve_app.cli_parts import err, finish, out, refuse, screen_of, site_of
from serve_app.options import JsonOption, ProfileOption, ServerOption, SetOption
from workflows.edit import Instances

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from serve_app.site import Site
    from workflows.edit import EditRequest
    from workflows.status import JobView
    from workflows.types import Json

FIND, DO, PART, FINE = "What to find", "What to do with it", "Which part", "How"
BESIDE_NAMES = {"mask": "_mask.mp4", "report": "_flicker.json", "plot": "_flicker.png"}
PLACE = re.compile(r"([0-9.]+(?:,[0-9.]+)*)(?:@([0-9]+))?")

VideoArgument = Annotated[str, typer.Argument(
    metavar="VIDEO", show_default=False, help="The video: a file, or an address that can be read from here.")]
OutputOption = Annotated[Path | None, typer.Option(
    "-o", "--output", show_default="VIDEO_edited.mp4", help="Where the edited video goes.")]
MaskPrompt = Annotated[str | None, typer.Option(
    rich_help_panel=FIND, show_default=False, help="What to find, in words: `hair`. The tracker `classical` goes by "
                                                   "colour: `red ball` is whatever is red.")]
PointOption = Annotated[list[str] | None, typer.Option(
    rich_help_panel=FIND, metavar="X,Y[@FRAME]", show_default=False,
    help="A place on the thing, in pixels of the video as it is shown, on a frame counted from --start-s. Repeatable.")]
NotPointOption = Annotated[list[str] | None, typer.Option(
    "--not-point", rich_help_panel=FIND, metavar="X,Y[@FRAME]", show_default=False,
    help="A place that does not belong to it. Repeatable.")]
BoxOption = Annotated[list[str] | None, typer.Option(
    rich_help_panel=FIND, metavar="LEFT,TOP,RIGHT,BOTTOM[@FRAME]", show_default=False,
    help="A rectangle around the thing. Repeatable.")]
MaskVideo = Annotated[str | None, typer.Option(
    rich_help_panel=FIND, metavar="FILE", show_default=False,
    help="A video whose light pixels are the mask, frame by frame, in place of finding one.")]
InvertMask = Annotated[bool | None, typer.Option(
    "--invert-mask", rich_help_panel=FIND, show_default=False, help="Edit everything but what was found.")]
InstancesOption = Annotated[Instances | None, typer.Option(
    rich_help_panel=FIND, show_default="all", help="All that fit, or the one that fits best, followed throughout.")]
TrackerOption = Annotated[str | None, typer.Option(
    rich_help_panel=FIND, metavar="CARD", show_default="classical",
    help="Model that finds: `sam3` knows words, `sam2.1-large` is shown points and boxes. `reelray models pull` brings "
         "them here, or $SAM3_MODEL_PATH and $SAM2_MODEL_PATH say where they lie.")]
ErodeKernel = Annotated[int | None, typer.Option(
    rich_help_panel=FIND, metavar="PX", show_default="0", help="Make the mask smaller all round by this diameter.")]
DilateKernel = Annotated[int | None, typer.Option(
    rich_help_panel=FIND, metavar="PX", show_default="0",
    help="Make it larger, after eroding. 2 or 4 cover a rim of the old colour.")]
EditPrompt = Annotated[str, typer.Option(
    rich_help_panel=DO, show_default=False, help="What to do to it: `make the hair red`. The editor `classical` "
                                                 "recolours: `make it blue`, `make it darker`.")]
NegativePrompt = Annotated[str | None, typer.Option(
    rich_help_panel=DO, show_default=False, help="What it should not show; for editors that know such.")]
EditorOption = Annotated[str | None, typer.Option(
    rich_help_panel=DO, metavar="CARD", show_default="classical",
    help="Model that edits, e.g. `instruct-pix2pix` ($INSTRUCT_PIX2PIX_MODEL_PATH says where it lies, if not here).")]
StepsOption = Annotated[int | None, typer.Option(
    rich_help_panel=DO, show_default="the editor's", help="Denoising steps: more are slower, and more exact.")]
GuidanceScale = Annotated[float | None, typer.Option(
    rich_help_panel=DO, show_default="the editor's", help="How strongly the text is followed.")]
ImageGuidance = Annotated[float | None, typer.Option(
    rich_help_panel=DO, show_default="the editor's", help="How closely each frame stays what it was.")]
SeedOption = Annotated[int | None, typer.Option(
    rich_help_panel=DO, show_default="0", help="Another seed is another try. Every frame has the same noise.")]
StartOption = Annotated[float | None, typer.Option(
    rich_help_panel=PART, metavar="SECONDS", show_default="0", help="Where the result begins in the video.")]
EndOption = Annotated[float | None, typer.Option(
    rich_help_panel=PART, metavar="SECONDS", show_default="its end", help="Where it ends.")]
MaxFrames = Annotated[int | None, typer.Option(
    rich_help_panel=PART, show_default="all", help="Edit at most so many frames; good for a first look.")]
KeepAudio = Annotated[bool | None, typer.Option(
    "--keep-audio/--no-keep-audio", rich_help_panel=PART, show_default="keep", help="Copy the sound, bit for bit.")]
FeatherOption = Annotated[int | None, typer.Option(
    rich_help_panel=FINE, metavar="PX", show_default="2", help="The edit fades in over so many pixels inside the "
                                                               "mask's edge.")]
CropMargin = Annotated[float | None, typer.Option(
    rich_help_panel=FINE, metavar="SHARE", show_default="0.25", help="How much around the region the editor sees.")]
EditSize = Annotated[int | None, typer.Option(
    rich_help_panel=FINE, metavar="PX", show_default="the editor's, or 512",
    help="Side of the square that the editor gets, a multiple of 8.")]
SmoothingOption = Annotated[float | None, typer.Option(
    rich_help_panel=FINE, metavar="0..1", show_default="0.7",
    help="How strongly each frame is drawn to the one before, against flicker; 0: not at all.")]
ChunkFrames = Annotated[int | None, typer.Option(
    rich_help_panel=FINE, show_default="48", help="Frames that a model gets at once; memory grows with it, not with "
                                                  "the video.")]
AllFiles = Annotated[bool, typer.Option(
    "--all-files", help="Put what else is made beside the video: OUT_mask.mp4 (the mask, to be looked at), "
                        "OUT_flicker.json and .png (how steady it is), OUT_log.txt.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only look at the video and say what would be done.")]


def edit(
    video: VideoArgument, edit_prompt: EditPrompt, output: OutputOption = None, all_files: AllFiles = False,
    dry_run: DryRun = False, mask_prompt: MaskPrompt = None, point: PointOption = None,
    not_point: NotPointOption = None, box: BoxOption = None, mask_video: MaskVideo = None,
    invert_mask: InvertMask = None, instances: InstancesOption = None, tracker: TrackerOption = None,
    erode_kernel: ErodeKernel = None, dilate_kernel: DilateKernel = None, negative_prompt: NegativePrompt = None,
    editor: EditorOption = None, steps: StepsOption = None, guidance_scale: GuidanceScale = None,
    image_guidance_scale: ImageGuidance = None, seed: SeedOption = None, start_s: StartOption = None,
    end_s: EndOption = None, max_frames: MaxFrames = None, keep_audio: KeepAudio = None,
    feather_px: FeatherOption = None, crop_margin: CropMargin = None, edit_size: EditSize = None,
    smoothing: SmoothingOption = None, chunk_frames: ChunkFrames = None, server: ServerOption = "",
    profile: ProfileOption = "", settings_: SetOption = None, as_json: JsonOption = False,
) -> None:
    """Edit a video by text: find something in it, change it, leave the rest as it is.

    `reelray edit in.mp4 -o out.mp4 --mask-prompt "red ball" --edit-prompt "make it blue"`

    Sound, frame rate and length are kept; what lies outside the mask is not touched. Chunks that are finished are kept:
    stop it with Ctrl-C, and the same command goes on where it was; another --edit-prompt finds nothing again. The
    video's path is printed last.

    Without --tracker and --editor both are `classical`: they go by colour, need no weights, and refuse words that they
    do not know. With --server the server edits, and the video is uploaded and downloaded.

    Exit codes: 0 video complete, 3 video without all that belongs beside it, 1 no video, 2 bad input, 130 stopped.
    """
    points = [*_points("--point", point, True), *_points("--not-point", not_point, False)]
    request = _request({
        "input_video_path": video, "edit_prompt": edit_prompt, "mask_prompt": mask_prompt, "points": points or None,
        "boxes": _boxes(box) or None, "mask_video": mask_video, "invert_mask": invert_mask or None,
        "instances": instances and instances.value, "tracker": tracker, "erode_kernel": erode_kernel,
        "dilate_kernel": dilate_kernel, "negative_prompt": negative_prompt, "editor": editor, "steps": steps,
        "guidance_scale": guidance_scale, "image_guidance_scale": image_guidance_scale, "seed": seed,
        "start_s": start_s, "end_s": end_s, "max_frames": max_frames, "keep_audio": keep_audio,
        "feather_px": feather_px, "crop_margin": crop_margin, "edit_size": edit_size, "smoothing": smoothing,
        "chunk_frames": chunk_frames})
    to = _output(video, output)
    site = site_of(server, profile, settings_)
    if dry_run:
        _show_plan(site.plan_edit(request), as_json)
        return
    screen = screen_of(as_json)

    def see_through() -> JobView:
        view = site.edit(request, screen)
        if all_files:
            _deliver_beside(site, view, to)
        return view

    finish(see_through, site, lambda _: to, screen)


def _request(fields: Mapping[str, Json]) -> EditRequest:
    """The fields that were given, and no others: an editor has numbers of its own for those that were not."""
    from workflows.edit import parse_edit

    given = {name: value for name, value in fields.items() if value is not None}
    return parse_edit({**given, "job_id": "edit", "output_dir": "."})


def _output(video: str, output: Path | None) -> Path:
    to = output or (Path(video) if "://" not in video else Path(Path(video).name)).with_suffix("")
    if output is None:
        to = to.with_name(f"{to.name}_edited.mp4")
    if to.is_dir():
        refuse(f"{to} is a directory; name a file with -o, e.g. {to / 'out.mp4'}")
    if "://" not in video and to.exists() and to.resolve() == Path(video).expanduser().resolve():
        refuse(f"{to} is the video itself; name another file with -o")
    return to


def _points(option: str, texts: Sequence[str] | None, inside: bool) -> list[Json]:
    return [{"x": numbers[0], "y": numbers[1], "frame": frame, "inside": inside}
            for numbers, frame in (_place(option, text, 2) for text in texts or ())]


def _boxes(texts: Sequence[str] | None) -> list[Json]:
    return [{"left": numbers[0], "top": numbers[1], "right": numbers[2], "bottom": numbers[3], "frame": frame}
            for numbers, frame in (_place("--box", text, 4) for text in texts or ())]


def _place(option: str, text: str, count: int) -> tuple[list[float], int]:
    """`12,34@5` as numbers and a frame."""
    match = PLACE.fullmatch(text.replace(" ", ""))
    try:
        numbers = [float(part) for part in match[1].split(",")] if match else []
    except ValueError:
        numbers = []
    if match is None or len(numbers) != count:
        example = ",".join(str(10 * number) for number in range(1, count + 1))
        refuse(f"{option} {text!r}: {count} numbers are needed, and a frame after @ where it is not the first; nearest "
               f"valid: {example} or {example}@24")
    return numbers, int(match[2] or 0)


def _deliver_beside(site: Site, view: JobView, to: Path) -> None:
    for what, ending in BESIDE_NAMES.items():
        site.deliver_beside(view, what, to.with_name(f"{to.stem}{ending}"))
    log = to.with_name(f"{to.stem}_log.txt")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(f"{line}\n" for line in site.log(view.id, False)), encoding="utf-8")


def _show_plan(plan: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(plan, ensure_ascii=False))
        return
    for warning in plan["warnings"]:
        err.print(f"note: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    source, asked = plan["source"], plan["request"]
    facts = Table(box=None, show_header=False)
    facts.add_row("video", f"{source['width_px']}x{source['height_px']} px, {source['fps']:g} frames per second, "
                           f"{source['duration_s']:.1f} s{'' if source['has_sound'] else ', no sound'}")
    chunks = "1 chunk" if plan["chunks"] == 1 else f"{plan['chunks']} chunks"
    facts.add_row("edited", f"{plan['frames']} frames, {plan['duration_s']:.1f} s, in {chunks}")
    facts.add_row("tracker", "given masks" if asked["mask_video"] else asked["tracker"])
    steps = "" if asked["editor"] == "classical" else (
        f", {asked['steps']} steps, guidance {asked['guidance_scale']:g}, squares of {asked['edit_size']} px")
    facts.add_row("editor", f"{asked['editor']}{steps}")
    facts.add_row("to do", f"{len(plan['nodes']) - plan['cache_hits']} of {len(plan['nodes'])} parts, about "
                           f"{plan['estimated_gpu_seconds']:.0f} s of models and {plan['estimated_cpu_seconds']:.0f} s "
                           "of CPU")
    out.print(facts)

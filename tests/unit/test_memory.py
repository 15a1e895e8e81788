"""Memory by shape, shares of a GPU by memory, and what the GPUs are known to have."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import casting, load_cards, load_settings
from configs.memory import (
    Placement,
    Remedies,
    Shape,
    default_shape,
    nearest_that_fits,
    need_of,
    room_gb,
    rungs_of,
    share_of,
    too_large,
)
from configs.model_card import GPU_SIZES_GB, ModelCard, Task
from configs.settings import Settings
from configs.sharing import gpus_taken
from serve_app.capacity import told_shares
from serve_app.gpus import cluster_gb, local_gb, with_gpu_memory
from workflows.errors import InvalidDocument
from workflows.plan import Plan, plan_film
from workflows.revise import with_lines
from workflows.storyboard import parse_storyboard

CARDS = load_cards(load_settings("laptop", (), {}))
BIG = CARDS["wan2.1-t2v-14b"]
"""47 GB at 832x480 and 57 GB at 1280x720, 81 frames each, over 40.45 GB of weights."""


def settings_of(*overrides: str) -> Settings:
    return load_settings("gpu", overrides, {})


def peak_gb(card: ModelCard, width_px: int, height_px: int, frames: int) -> float:
    need = need_of(card, Shape(width_px=width_px, height_px=height_px, frames=frames))
    assert need is not None
    return need.gb()


# -- memory by shape ---------------------------------------------------------------------------------------------


def test_a_known_shape_needs_its_peak() -> None:
    assert (peak_gb(BIG, 832, 480, 81), peak_gb(BIG, 1280, 720, 81)) == pytest.approx((47, 57))


def test_between_two_peaks_lies_a_line_below_them_a_proportion_and_above_the_line_goes_on() -> None:
    half = peak_gb(BIG, 1056, 600, 81)
    share = (1056 * 600 - 832 * 480) / (1280 * 720 - 832 * 480)
    assert half == pytest.approx(47 + 10 * share)
    assert peak_gb(BIG, 832, 480, 1) == pytest.approx(40.45 + 6.55 / 81)
    assert peak_gb(BIG, 1280, 720, 161) > 57 + 10


def test_only_a_peak_of_the_very_shape_is_more_than_an_estimate() -> None:
    memory = BIG.memory
    assert memory is not None
    peaks = (memory.peaks[0].model_copy(update={"how": "measured"}),)
    card = BIG.model_copy(update={"memory": memory.model_copy(update={"peaks": peaks})})
    assert [need.how for frames in (81, 77)
            if (need := need_of(card, Shape(width_px=832, height_px=480, frames=frames)))] == ["measured", "estimated"]


def test_a_card_without_peaks_says_nothing() -> None:
    shape = Shape(width_px=4096, height_px=4096, frames=1000)
    assert need_of(CARDS["sketch"], shape) is None
    assert too_large(CARDS["sketch"], shape, 0.1, Remedies()) == ""


def test_remedies_take_off_weights_first_and_activations_with_tiles() -> None:
    need = need_of(BIG, default_shape(BIG))
    assert need is not None
    assert need.gb(Remedies(placement=Placement.PARTS)) == pytest.approx(28.58 + 6.55)
    assert need.gb(Remedies(placement=Placement.LAYERS)) == pytest.approx(2.858 + 6.55)
    assert need.gb(Remedies(tiles=True)) == pytest.approx(40.45 + 6.55 / 2)


# -- shares ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("card", "gpu_gb", "gpus"), [
    ("wan2.1-t2v-1.3b", 80, 0.28), ("wan2.1-t2v-1.3b", 24, 1), ("sdxl", 24, 0.47), ("sdxl", 80, 0.14),
    ("wan2.2-t2v-a14b", 141, 0.6), ("wan2.2-t2v-a14b", 80, 1), ("wan2.1-t2v-14b", 12, 1), ("sketch", 80, 0.5),
    ("placeholder", 80, 0)])
def test_a_share_follows_from_the_peak_and_the_gpu(card: str, gpu_gb: float, gpus: float) -> None:
    settings = settings_of(f"models.gpu_memory_gb={gpu_gb}")
    assert share_of(CARDS[card], settings.models).gpus == gpus


def test_the_documents_table_of_shares_is_what_the_cards_get() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text()
    table = text.partition("| card | GPU of 24 GB |")[2].partition("\n\n")[0]
    rows = {cells[1].strip(" `"): cells[2:6] for line in table.splitlines()[2:] if (cells := line.split("|"))}
    assert set(rows) == {card.name for card in CARDS.values() if card.memory and card.memory.peaks}
    for name, cells in rows.items():
        shares = [share_of(CARDS[name], settings_of(f"models.gpu_memory_gb={gb}").models).gpus
                  for gb in (24, 48, 80, 141)]
        assert [float(cell.partition(",")[0]) for cell in cells] == shares


def test_pictures_that_share_a_call_need_their_activations_each() -> None:
    four = CARDS["sdxl"].model_copy(update={"batch": 4})
    need = need_of(four, default_shape(four))
    assert need is not None
    together_gb = need.weights_gb + 4 * need.activations_gb
    share = share_of(four, settings_of("models.gpu_memory_gb=80").models)
    assert room_gb(80, share.gpus) >= together_gb > need.gb() + 1
    assert f"{together_gb:.3g} GB at 4 x 1024x1024 (estimated)" in share.why


def test_every_derived_part_has_room_for_the_peak() -> None:
    parts = 0
    for card in CARDS.values():
        for gpu_gb in GPU_SIZES_GB if card.memory else ():
            gpus = share_of(card, settings_of(f"models.gpu_memory_gb={gpu_gb}").models).gpus
            parts += gpus < 1
            assert gpus == 1 or not too_large(card, default_shape(card), room_gb(gpu_gb, gpus), Remedies())
    assert parts > 10


def test_without_a_known_gpu_or_peak_replicas_get_whole_ones_and_the_reason_is_told() -> None:
    told = {name: share_of(CARDS[name], settings_of().models) for name in ("sdxl", "sketch")}
    assert told["sdxl"].gpus == 1
    assert "models.gpu_memory_gb sets it" in told["sdxl"].why
    assert (told["sketch"].gpus, told["sketch"].why) == (0.5, "as the card says")
    set_by_hand = settings_of("models.gpu_memory_gb=80", "models.by_card.sdxl.num_gpus=0.3")
    assert share_of(CARDS["sdxl"], set_by_hand.models).gpus == 0.3


def test_shares_that_nobody_wrote_down_are_told_with_their_reason() -> None:
    settings = settings_of("models.gpu_memory_gb=80", "models.device=auto")
    cards = (CARDS["sdxl"], CARDS["sketch"])
    assert told_shares(settings, cards, {"GPU": 1.0}) == (
        "sdxl: 0.14 GPU per replica: 10 GB at 1024x1024 (estimated) on a GPU of 80 GB",)
    assert told_shares(settings, cards, {}) == ()


@pytest.mark.parametrize(("shares", "gpus"), [
    ([0.5, 0.5], 1), ([0.6, 0.6, 0.6], 3), ([0.6, 0.4, 0.6, 0.4], 2), ([2, 0.28, 0.28, 0.28], 3), ([0, 0], 0),
    ([0.1] * 10, 1)])
def test_no_part_of_a_gpu_lies_on_two(shares: list[float], gpus: float) -> None:
    assert gpus_taken(shares) == gpus


# -- what fits ---------------------------------------------------------------------------------------------------


def test_too_large_tells_what_is_needed_what_is_there_and_what_would_fit() -> None:
    shape = Shape(width_px=1280, height_px=720, frames=81)
    text = too_large(BIG, shape, 8.0, rungs_of(BIG)[-1])
    assert text == ("1280x720, 81 frames of wan2.1-t2v-14b need 57 GB of GPU memory (estimated), 11.1 GB with decoding "
                    "in tiles and moving layers in and out of the GPU, and a replica has 8 GB")
    for nearest in nearest_that_fits(BIG, shape, 8.0, rungs_of(BIG)[-1]).split(" or "):
        frames = int(nearest.split()[0]) if nearest.endswith("frames") else 81
        width_px, height_px = (1280, 720) if nearest.endswith("frames") else map(int, nearest.split("x"))
        smaller = Shape(width_px=width_px, height_px=height_px, frames=frames)
        assert not too_large(BIG, smaller, 8.0, rungs_of(BIG)[-1])
        assert BIG.frames.problem(frames) == BIG.size.problem(width_px) == BIG.size.problem(height_px) == ""


FILM = """
size: 1280x720
shots:
  - {id: s1, prompt: a, frames: 81}
  - {id: s2, prompt: b, frames: 17}
  - {id: s3, prompt: c, duration_s: 5}
"""


def plan_on(gpu_gb: float, text: str, *overrides: str) -> Plan:
    settings = settings_of(f"models.gpu_memory_gb={gpu_gb}", "models.text_to_video=wan2.1-t2v-14b",
                           "models.text_to_image=sdxl", *overrides)
    storyboard = parse_storyboard(text)
    try:
        return plan_film(storyboard, cards=casting(settings, CARDS))
    except InvalidDocument as error:
        raise with_lines(error, text, file="film.yaml") from None


def test_the_door_names_every_shot_that_fits_no_replica_and_what_would() -> None:
    with pytest.raises(InvalidDocument) as refused:
        plan_on(8, FILM)
    first, second = str(refused.value).splitlines()
    assert first == (
        "film.yaml:4: shot s1: frames: 1280x720, 81 frames of wan2.1-t2v-14b need 57 GB of GPU memory (estimated), "
        "11.1 GB with decoding in tiles and moving layers in and out of the GPU, and a replica has 7 GB; "
        "nearest valid: 41 frames or 928x512")
    assert second.startswith("film.yaml:6: shot s3: duration_s: 1280x720, 81 frames of")
    assert len(plan_on(24, FILM).shots) == 3


def test_the_door_tells_of_a_length_where_it_is_written() -> None:
    shots = "shots:\n" + "  - prompt: a cat\n" * 5
    for text, told in (("defaults: {frames: 81}\n" + shots, "film.yaml:1: defaults.frames: 1280x720, 81 frames of"),
                       (shots, "film.yaml:1: size: 1280x720, 81 frames of")):
        with pytest.raises(InvalidDocument) as refused:
            plan_on(8, text.replace("shots:", "size: 1280x720\nshots:"))
        (line,) = str(refused.value).splitlines()
        assert line.startswith(told), line


def test_the_door_says_once_that_pictures_are_too_large() -> None:
    text = FILM.replace("prompt: ", "mode: keyframe, prompt: ")
    with pytest.raises(InvalidDocument) as refused:
        plan_on(2.5, text, "models.image_to_video=placeholder")
    (only,) = refused.value.problems
    assert (only.shot_id, only.field) == ("", "size")
    assert only.problem.startswith("1280x720 of sdxl need ")


def test_a_door_that_does_not_know_the_gpus_refuses_nothing() -> None:
    settings = settings_of("models.text_to_video=wan2.1-t2v-14b")
    assert casting(settings, CARDS)[Task.TEXT_TO_VIDEO] is BIG
    known = casting(settings_of("models.gpu_memory_gb=80", "models.text_to_video=wan2.1-t2v-14b"), CARDS)
    assert known[Task.TEXT_TO_VIDEO].resources.room_gb == pytest.approx(room_gb(80, 0.66))
    assert known[Task.TEXT_TO_VIDEO].digest() == BIG.digest()


def test_nothing_is_proposed_where_nothing_fits() -> None:
    assert nearest_that_fits(BIG, Shape(width_px=1280, height_px=720, frames=81), 1.0, rungs_of(BIG)[-1]) == ""


# -- what the GPUs have ------------------------------------------------------------------------------------------


def test_the_smallest_gpu_of_this_machine_counts() -> None:
    assert local_gb(lambda: "81559, Disabled\n23034, [N/A]\n") == pytest.approx(24.15, abs=0.01)
    assert local_gb(lambda: "") is None
    assert local_gb(lambda: "[Not Supported], [N/A]\n") is None
    assert local_gb(lambda: "81559, Enabled\n") is None


def test_a_clusters_gpus_are_known_only_where_every_kind_has_one_size() -> None:
    assert cluster_gb({"accelerator_type:H200": 1.0, "accelerator_type:L4": 1.0, "GPU": 9.0}) == 24
    assert cluster_gb({"accelerator_type:H200": 1.0, "accelerator_type:A100": 1.0}) is None
    assert cluster_gb({"GPU": 8.0}) is None


def test_the_setting_wins_and_a_machine_without_gpus_stays_as_it_is() -> None:
    laptop = load_settings("laptop", (), {})
    assert with_gpu_memory(laptop, {"GPU": 1.0}, lambda: "") is laptop
    assert with_gpu_memory(laptop, {"CPU": 4.0}, lambda: "24000, [N/A]") is laptop
    found = with_gpu_memory(laptop, {"GPU": 1.0}, lambda: "24000, [N/A]")
    assert found.models.gpu_memory_gb == pytest.approx(25.17, abs=0.01)
    fixed = settings_of("models.gpu_memory_gb=80")
    assert with_gpu_memory(fixed, {"GPU": 1.0}, lambda: "24000, [N/A]") is fixed
    far = settings_of("ray.address=head:6379")
    assert with_gpu_memory(far, None, lambda: "24000, [N/A]") is far
    assert with_gpu_memory(far, {"accelerator_type:H200": 1.0}, lambda: "24000, [N/A]").models.gpu_memory_gb == 141

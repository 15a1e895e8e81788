"""Scripts become storyboards by fixed rules: screenplays in Fountain notation and plain paragraphs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.errors import InvalidDocument
from workflows.fountain import is_fountain, place_words
from workflows.script import looks_like_script, parse_script, split_sentences
from workflows.storyboard import FilmFields, Size, Storyboard

PLAY = """Title:
    _**BRICK & STEEL**_
    FULL RETIRED
Author: Stu Maschwitz

FADE IN:

EXT. BRICK'S POOL - DAY #1#

Steel, in the middle of a *heated* phone call,
walks past. [[keep this
short]]

STEEL (V.O.)
(beer raised)
To retirement.

BRICK ^
To retirement.

# Act two

= They part.

DISSOLVE TO:

INT. CAR - NIGHT

Rain. /* cut this

paragraph */

CUT TO:

.SNIPER SCOPE POV

Brick at the window.

EXT. BEACH -- DAWN
"""


def prompts(film: Storyboard) -> list[str]:
    return [shot.prompt for shot in film.shots]


def captions(film: Storyboard) -> list[str | None]:
    return [shot.caption for shot in film.shots]


def fountain(text: str) -> Storyboard:
    return parse_script(text, file="play.fountain")


def test_a_screenplay_becomes_shots_with_place_and_time() -> None:
    assert prompts(fountain(PLAY)) == [
        "Steel, in the middle of a heated phone call, walks past. Exterior, brick's pool, day.",
        "BRICK speaks. Exterior, brick's pool, day.",
        "Rain. Interior, car, night.",
        "Brick at the window. Sniper scope pov.",
        "Exterior, beach, dawn",
    ]


def test_dialogue_is_the_caption_of_the_shot_before_it_or_of_a_new_one() -> None:
    assert captions(fountain(PLAY)) == ["STEEL: To retirement.", "BRICK: To retirement.", None, None, None]


def test_the_title_page_gives_the_title_and_nothing_else() -> None:
    assert fountain(PLAY).title == "BRICK & STEEL FULL RETIRED"


def test_a_dissolve_is_a_crossfade_into_the_next_shot_only() -> None:
    assert [shot.transition is not None for shot in fountain(PLAY).shots] == [False, False, True, False, False]


@pytest.mark.parametrize(("line", "fades"), [
    ("DISSOLVE TO:", True), ("SLOW DISSOLVE TO:", True), ("CROSSFADE TO:", True), (">Dissolve to", True),
    ("CUT TO:", False), ("SMASH CUT TO:", False), ("FADE TO BLACK:", False), ("FADE OUT.", False),
    ("> Fade out.", False),
])
def test_only_dissolves_fade_two_shots_into_each_other(line: str, fades: bool) -> None:
    film = fountain(f"INT. HALL\n\nA cat.\n\n{line}\n\nA dog.\n")
    assert prompts(film) == ["A cat. Interior, hall.", "A dog. Interior, hall."]
    assert (film.shots[1].transition is not None) is fades


@pytest.mark.parametrize(("heading", "words"), [
    ("INT. KITCHEN - NIGHT", "Interior, kitchen, night"),
    ("ext kitchen", "Exterior, kitchen"),
    ("EST. CITY - DAWN", "Exterior, city, dawn"),
    ("INT./EXT. CAR - DAY", "Interior and exterior, car, day"),
    ("I/E CAR", "Interior and exterior, car"),
    (".BACK AT THE POOL", "Back at the pool"),
    ("INT. Anna's room — later #12-A#", "Interior, Anna's room, later"),
    ("INT. TAXI - MOVING - DAY", "Interior, taxi, moving, day"),
])
def test_a_scene_heading_reads_as_words_of_a_prompt(heading: str, words: str) -> None:
    assert place_words(heading) == words
    assert prompts(fountain(f"{heading}\n\n")) == [words]


@pytest.mark.parametrize(("text", "expected"), [
    ("ANNA\nLook!\n", [("ANNA speaks.", "ANNA: Look!")]),
    ("@McAvoy\nLook!\n", [("McAvoy speaks.", "McAvoy: Look!")]),
    ("ANNA (O.S.)\n(quietly)\nLook!\n  \nThere.\n", [("ANNA speaks.", "ANNA: Look! There.")]),
    ("A cat.\n\nANNA\nLook!\n\nA dog.\n", [("A cat.", "ANNA: Look!"), ("A dog.", None)]),
    ("A cat.\n\n~La la\n~lu\n", [("A cat.", "La la lu")]),
    ("A cat.\n\nANNA\n(nods)\n", [("A cat.", None)]),
    ("!ANNA\nwaits.\n", [("ANNA waits.", None)]),
    ("BOOM!\n\nSmoke.\n", [("BOOM!", None), ("Smoke.", None)]),
    ("> THE END <\n", [("THE END", None)]),
    ("One \\*star\\* and *two* _stars_ of snake_case.\n", [("One *star* and two stars of snake_case.", None)]),
    ("A cat. [[note]] /* gone */ Sleeps.\n", [("A cat. Sleeps.", None)]),
    ("/* gone */ A cat.\n", [("A cat.", None)]),
    ("/*/ A cat. */ A dog.\n", [("A dog.", None)]),
    ("An open [[ note.\n", [("An open [[ note.", None)]),
    ("A cat\n> and a dog.\n", [("A cat > and a dog.", None)]),
    ("A cat.\n\n===\n\n# Part\n= synopsis\n\nA dog.\n", [("A cat.", None), ("A dog.", None)]),
], ids=["cue", "forced cue", "voice over and pause", "caption of the shot before", "lyrics", "no word said",
        "forced action", "capitals alone are action", "centred", "emphasis", "notes",
        "note at the start", "mark inside a note", "open note", "not centred", "left out"])
def test_each_mark_of_the_notation_is_understood(text: str, expected: list[tuple[str, str | None]]) -> None:
    assert [(shot.prompt, shot.caption) for shot in fountain(text).shots] == expected


def test_long_dialogue_becomes_several_captions() -> None:
    film = fountain("A cat.\n\nANNA\n" + "I have a long story to tell. " * 10)
    assert len(film.shots) == 3
    assert all(len(caption or "") <= 120 for caption in captions(film))
    assert prompts(film) == ["A cat.", "ANNA speaks.", "ANNA speaks."]


def test_each_paragraph_is_a_shot_and_the_first_heading_the_title() -> None:
    text = "# The *sea*\n\nA ball\nrolls.\n\n---\n\n## Two\nIt falls.\n"
    film = parse_script(text, file="film.md")
    assert (film.title, prompts(film)) == ("The sea", ["A ball rolls.", "It falls."])


def test_long_action_is_split_between_sentences() -> None:
    film = parse_script("A ball rolls over the white sand. " * 10, file="a.txt")
    assert [len(prompt.split()) for prompt in prompts(film)] == [35, 35]


@pytest.mark.parametrize(("text", "words", "pieces"), [
    ("One two. Three four! Five?", 2, ["One two.", "Three four!", "Five?"]),
    ("One two. Three four! Five?", 4, ["One two. Three four!", "Five?"]),
    ("One two three four five.", 2, ["One two three four five."]),
    ("Dr. Who meets Mr. Bean. They talk.", 5, ["Dr. Who meets Mr. Bean.", "They talk."]),
    ('He says "Go." She goes.', 3, ['He says "Go."', "She goes."]),
    ("红球向左。蓝球向右。", 5, ["红球向左。", "蓝球向右。"]),
    ("红球向左。蓝球向右。", 20, ["红球向左。蓝球向右。"]),
    ("3.5 metres... and on", 2, ["3.5 metres...", "and on"]),
    ("", 2, []),
], ids=["every sentence", "as many as fit", "one long sentence", "abbreviations", "quotes", "chinese", "chinese joined",
        "numbers", "nothing"])
def test_text_is_split_between_sentences_only(text: str, words: int, pieces: list[str]) -> None:
    assert split_sentences(text, words) == pieces


@pytest.mark.parametrize(("text", "file", "is_script"), [
    ("shots: []", "play.fountain", True), ("anything", "a.TXT", True), ("anything", "a.md", True),
    ("INT. HALL\n", "a.yaml", False), ("anything", "a.yml", False), ("anything", "a.json", False),
    ("title: x\nshots:\n  - prompt: a\n", "", False), ('\ufeff {"shots": []}', "", False),
    ("title: x\ndefaults: {}\n", "film", False),
    ("Title: x\n\nINT. HALL\n", "", True), ("A ball rolls.", "", True), ("", "", True),
])
def test_a_script_is_told_from_a_storyboard_by_its_name_or_else_its_text(text: str, file: str, is_script: bool) -> None:
    assert looks_like_script(text, file) is is_script


@pytest.mark.parametrize(("text", "expected"), [
    ("INT. HALL\n\nA cat.", True), ("Title: x\nAuthor: y\n\nA cat.", True), ("A cat.\n\nEXT. SEA", True),
    ("A cat.", False), ("Int is a type.", False), ("# Title\n\nA cat.", False),
])
def test_a_screenplay_is_told_from_paragraphs_by_headings_and_title_page(text: str, expected: bool) -> None:
    assert is_fountain(text) is expected


def test_a_text_file_with_scene_headings_is_read_as_a_screenplay() -> None:
    assert prompts(parse_script("INT. HALL\n\nA cat.\n", file="play.txt")) == ["A cat. Interior, hall."]


def test_what_a_script_cannot_say_comes_from_outside() -> None:
    film = parse_script("A cat.", film=FilmFields(size=Size(width_px=96, height_px=64), fps=12.0, seed=3, style="ink"))
    assert (film.size, film.fps, film.seed, film.style) == (Size(width_px=96, height_px=64), 12.0, 3, "ink")


def test_the_same_script_always_gives_the_same_storyboard() -> None:
    assert fountain(PLAY) == fountain(PLAY.replace("\n", "\r\n"))


@pytest.mark.parametrize(("text", "message"), [
    ("", "play.txt: the script has nothing to shoot: no action, no dialogue, no scene"),
    ("# Only a title\n", "play.txt: the script has nothing to shoot: no action, no dialogue, no scene"),
    ("A\x00cat", "play.txt:1: the character U+0000 is not allowed; remove it"),
    ("A cat.\n\n" * 1001, "play.txt:2001: a film has at most 1000 shots; here begins one more"),
    ("# " + "x" * 201 + "\n\nA cat.", "play.txt: title: has 201 characters; at most 200 are taken"),
    ("x" * 1_000_001, "play.txt: longer than 1000000 bytes"),
], ids=["empty", "title only", "NUL", "too many shots", "long title", "too long"])
def test_a_script_that_cannot_be_a_film_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidDocument) as refused:
        parse_script(text, file="play.txt")
    assert str(refused.value) == message


MARKS = st.sampled_from([
    "INT. HALL - DAY", "EXT.", ".", "..", ".x", "ANNA", "@", "@b", "(aside)", "Look!", "~la", "~", "> CUT TO:", ">",
    "> x <", "DISSOLVE TO:", "# act", "=", "===", "[[", "]]", "/*", "*/", "", "", "  ", "Title: x", "*", "_", "\\*",
    "!", "^", "---", "A cat.", "Mr.", "\u4e2d\u3002", "- a", "\t"])


@settings(max_examples=100, deadline=None)
@given(st.lists(MARKS, max_size=14), st.sampled_from(["a.fountain", "a.txt", ""]))
def test_any_order_of_marks_is_a_storyboard_or_refused(lines: list[str], file: str) -> None:
    told = ""
    try:
        parse_script("\n".join(lines), file=file)
    except InvalidDocument as refused:
        told = str(refused)
    assert not told or "nothing to shoot" in told

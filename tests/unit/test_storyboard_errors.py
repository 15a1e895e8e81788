"""Every malformed storyboard gets exactly the message that helps: file, line, shot, field, nearest valid value."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from workflows.errors import InvalidDocument
from workflows.storyboard import MAX_PROBLEMS, Shot, Storyboard, parse_storyboard

# By name: the text, then every line of the message.
TABLE = {
    "no shots": (
        "title: x\n",
        "film.yaml:1: shots: is required",
    ),
    "empty shots": (
        "shots: []\n",
        "film.yaml:1: shots: is empty; at least 1 is needed",
    ),
    "shots without value": (
        "shots:\n",
        "film.yaml:1: shots: has no value",
    ),
    "shots as mapping": (
        "shots: {prompt: a}\n",
        "film.yaml:1: shots: must be a list, not a mapping",
    ),
    "a shot as text": (
        "shots:\n  - a ball\n",
        "film.yaml:2: shot s1: must be a mapping of fields, not the text 'a ball'",
    ),
    "no prompt": (
        "shots:\n  - id: a\n",
        "film.yaml:2: shot a: prompt: is required",
    ),
    "an empty prompt": (
        "shots:\n  - prompt: '  '\n",
        "film.yaml:2: shot s1: prompt: is empty",
    ),
    "a prompt without value": (
        "shots:\n  - prompt:\n",
        "film.yaml:2: shot s1: prompt: has no value",
    ),
    "a misspelled field": (
        "shots:\n  - promt: a\n",
        "film.yaml:2: shot s1: prompt: is required",
        "film.yaml:2: shot s1: promt: unknown field; nearest valid: prompt",
    ),
    "a misspelled film field": (
        "titel: x\nshots:\n  - prompt: a\n",
        "film.yaml:1: titel: unknown field; nearest valid: title",
    ),
    "an unlike field": (
        "zzz: 1\nshots:\n  - prompt: a\n",
        "film.yaml:1: zzz: unknown field",
    ),
    "a film field in a shot": (
        "shots:\n  - prompt: a\n    fps: 8\n",
        "film.yaml:3: shot s1: fps: unknown field here; it belongs to the film",
    ),
    "a shot field in the film": (
        "duration_s: 2\nshots:\n  - prompt: a\n",
        "film.yaml:1: duration_s: unknown field here; it belongs to a shot, `defaults` or a transition",
    ),
    "a strange key": (
        "'a b': 1\n\"c\\nd\": 2\nshots:\n  - prompt: a\n",
        "film.yaml:1: 'a b': unknown field",
        "film.yaml:2: 'c\\nd': unknown field",
    ),
    "a space in an id": (
        "shots:\n  - prompt: a\n    id: the ball\n",
        "film.yaml:3: shot s1: id: 'the ball' is no id: 1 to 64 letters, digits, _ or -; nearest valid: the-ball",
    ),
    "an empty id": (
        "shots:\n  - prompt: a\n    id: ''\n",
        "film.yaml:3: shot s1: id: '' is no id: 1 to 64 letters, digits, _ or -",
    ),
    "the same id": (
        "shots:\n  - {prompt: a, id: ball}\n  - {prompt: a, id: ball}\n",
        "film.yaml:3: shot ball: id: the id ball is taken by shot 1; nearest valid: ball-2",
    ),
    "an id that a nameless shot has": (
        "shots:\n  - {prompt: a, id: s2}\n  - {prompt: a}\n",
        "film.yaml:3: shot s2: id: the id s2 is taken by shot 1; nearest valid: s2-2",
    ),
    "text for a number": (
        "shots:\n  - prompt: a\n    frames: '17'\n",
        "film.yaml:3: shot s1: frames: must be a whole number, not the text '17'; nearest valid: 17",
    ),
    "half a frame": (
        "shots:\n  - prompt: a\n    frames: 16.5\n",
        "film.yaml:3: shot s1: frames: must be a whole number, not the number 16.5; nearest valid: 16 or 17",
    ),
    "true for a number": (
        "shots:\n  - prompt: a\n    guidance: true\n",
        "film.yaml:3: shot s1: guidance: must be a number, not the true/false value true",
    ),
    "no frames": (
        "shots:\n  - prompt: a\n    frames: 0\n",
        "film.yaml:3: shot s1: frames: 0 is below 1; nearest valid: 1",
    ),
    "too many takes": (
        "shots:\n  - prompt: a\n    takes: 9\n",
        "film.yaml:3: shot s1: takes: 9 is above 8; nearest valid: 8",
    ),
    "a negative seed": (
        "seed: -1\nshots:\n  - prompt: a\n",
        "film.yaml:1: seed: -1 is below 0; nearest valid: 0",
    ),
    "a huge seed": (
        "seed: 4294967296\nshots:\n  - prompt: a\n",
        "film.yaml:1: seed: 4294967296 is above 4294967295; nearest valid: 4294967295",
    ),
    "too much guidance": (
        "shots:\n  - prompt: a\n    guidance: 50.5\n",
        "film.yaml:3: shot s1: guidance: 50.5 is above 50; nearest valid: 50",
    ),
    "no time": (
        "shots:\n  - prompt: a\n    duration_s: 0\n",
        "film.yaml:3: shot s1: duration_s: 0 is below 0.01; nearest valid: 0.01",
    ),
    "too slow": (
        "fps: 0.5\nshots:\n  - prompt: a\n",
        "film.yaml:1: fps: 0.5 is below 1; nearest valid: 1",
    ),
    "factor nine": (
        "interpolate: 9\nshots:\n  - prompt: a\n",
        "film.yaml:1: interpolate: 9 is above 8; nearest valid: 8",
    ),
    "an unknown mode": (
        "shots:\n  - prompt: a\n    mode: keyfram\n",
        "film.yaml:3: shot s1: mode: 'keyfram' is not one of text_to_video, keyframe, image; "
        "nearest valid: keyframe",
    ),
    "a number as mode": (
        "shots:\n  - prompt: a\n    mode: 3\n",
        "film.yaml:3: shot s1: mode: must be one of text_to_video, keyframe, image, not the number 3",
    ),
    "an unknown missing": (
        "missing: black\nshots:\n  - prompt: a\n",
        "film.yaml:1: missing: 'black' is not one of cut, slate",
    ),
    "a size in words": (
        "size: large\nshots:\n  - prompt: a\n",
        "film.yaml:1: size: 'large' is not WIDTHxHEIGHT in pixels, e.g. 96x64",
    ),
    "a size with spaces": (
        "size: 96 x 64\nshots:\n  - prompt: a\n",
        "film.yaml:1: size: '96 x 64' is not WIDTHxHEIGHT in pixels, e.g. 96x64; nearest valid: 96x64",
    ),
    "a size of nothing": (
        "size: 0x64\nshots:\n  - prompt: a\n",
        "film.yaml:1: size: 0x64 without quotes is read as different numbers by different YAML "
        "readers; nearest valid: \"0x64\"",
    ),
    "half a size": (
        "size: {width_px: 96}\nshots:\n  - prompt: a\n",
        "film.yaml:1: size.height_px: is required",
    ),
    "a size as number": (
        "size: 96\nshots:\n  - prompt: a\n",
        "film.yaml:1: size: must be WIDTHxHEIGHT in pixels, e.g. 96x64, not the number 96",
    ),
    "a fade by another name": (
        "shots:\n  - prompt: a\n  - prompt: b\n    transition: fade\n",
        "film.yaml:4: shot s2: transition: 'fade' is not one of cut, crossfade; nearest valid: crossfade",
    ),
    "a transition of another kind": (
        "shots:\n  - prompt: a\n  - prompt: b\n    transition: {type: crosfade}\n",
        "film.yaml:4: shot s2: transition.type: 'crosfade' is not one of cut, crossfade; nearest valid: crossfade",
    ),
    "a transition without type": (
        "shots:\n  - prompt: a\n  - prompt: b\n    transition: {duration_s: 1}\n",
        "film.yaml:4: shot s2: transition.type: is required",
    ),
    "a fade without time": (
        "shots:\n  - prompt: a\n  - prompt: b\n    transition: {type: crossfade, duration_s: 0}\n",
        "film.yaml:4: shot s2: transition.duration_s: 0 is below 0.01; nearest valid: 0.01",
    ),
    "a long caption": (
        "shots:\n  - prompt: a\n    caption: " + "x" * 501 + "\n",
        "film.yaml:3: shot s1: caption: has 501 characters; at most 500 are taken",
    ),
    "a long title": (
        "title: " + "x" * 201 + "\nshots:\n  - prompt: a\n",
        "film.yaml:1: title: has 201 characters; at most 200 are taken",
    ),
    "characters as text": (
        "shots:\n  - prompt: a\n    characters: rex\n",
        "film.yaml:3: shot s1: characters: must be a list, not the text 'rex'; nearest valid: [rex]",
    ),
    "a character without description": (
        "characters:\n  - id: rex\nshots:\n  - prompt: a\n",
        "film.yaml:2: characters[0].description: is required",
    ),
    "a cut that lasts": (
        "shots:\n  - prompt: a\n  - prompt: b\n    transition: {type: cut, duration_s: 1}\n",
        "film.yaml:4: shot s2: transition.duration_s: a cut takes no time; remove it",
    ),
    "a fade into the first shot": (
        "shots:\n  - prompt: a\n    transition: crossfade\n",
        "film.yaml:3: shot s1: transition: the first shot has nothing to fade from; nearest valid: cut",
    ),
    "both lengths": (
        "shots:\n  - prompt: a\n    duration_s: 2\n    frames: 17\n",
        "film.yaml:4: shot s1: frames: give frames or duration_s, not both",
    ),
    "both lengths as default": (
        "defaults: {duration_s: 2, frames: 17}\nshots:\n  - prompt: a\n",
        "film.yaml:1: defaults.frames: give frames or duration_s, not both",
    ),
    "a picture and a keyframe": (
        "shots:\n  - prompt: a\n    image: a.png\n    mode: keyframe\n",
        "film.yaml:4: shot s1: mode: a shot with an image cannot be keyframe; nearest valid: image",
    ),
    "no picture": (
        "shots:\n  - prompt: a\n    mode: image\n",
        "film.yaml:2: shot s1: image: mode image needs the path of a picture here",
    ),
    "no picture by default": (
        "defaults: {mode: image}\nshots:\n  - prompt: a\n",
        "film.yaml:3: shot s1: image: mode image needs the path of a picture here",
    ),
    "a picture and a shot before": (
        "shots:\n  - prompt: a\n  - prompt: b\n    continues: s1\n    image: a.png\n",
        "film.yaml:5: shot s2: image: give image or continues, not both",
    ),
    "a mode and a shot before": (
        "shots:\n  - prompt: a\n  - prompt: b\n    continues: s1\n    mode: keyframe\n",
        "film.yaml:5: shot s2: mode: a shot that continues another starts from that shot's last frame; remove mode",
    ),
    "an unknown shot": (
        "shots:\n  - {prompt: a, id: opening}\n  - {prompt: b, continues: openning}\n",
        "film.yaml:3: shot s2: continues: no shot has the id 'openning'; nearest valid: opening",
    ),
    "an unknown shot of few": (
        "shots:\n  - {prompt: a, id: x}\n  - {prompt: b, continues: opening}\n",
        "film.yaml:3: shot s2: continues: no shot has the id 'opening'; nearest valid: x",
    ),
    "itself": (
        "shots:\n  - {prompt: a, continues: s1}\n",
        "film.yaml:2: shot s1: continues: a shot cannot continue itself",
    ),
    "a circle": (
        "shots:\n  - {prompt: a, continues: s3}\n  - {prompt: b}\n  - {prompt: c, continues: s1}\n",
        "film.yaml:2: shot s1: continues: the shots continue each other in a circle: s1 -> s3 -> s1",
    ),
    "an unknown character": (
        "characters:\n  - {id: hero, description: a dog}\nshots:\n  - {prompt: a, characters: [heroo]}\n",
        "film.yaml:4: shot s1: characters[0]: no character has the id 'heroo'; nearest valid: hero",
    ),
    "no characters at all": (
        "shots:\n  - {prompt: a, characters: [rex]}\n",
        "film.yaml:2: shot s1: characters[0]: no character has the id 'rex'",
    ),
    "a number and an unknown character": (
        "characters:\n  - {id: hero, description: a dog}\nshots:\n  - {prompt: a, characters: [1, rex]}\n",
        "film.yaml:4: shot s1: characters[1]: no character has the id 'rex'; nearest valid: hero",
        "film.yaml:4: shot s1: characters[0]: must be text, not the number 1; nearest valid: \"1\"",
    ),
    "a character twice": (
        "characters:\n  - {id: hero, description: a dog}\nshots:\n  - {prompt: a, characters: [hero, hero]}\n",
        "film.yaml:4: shot s1: characters[1]: hero is named twice",
    ),
    "the same character id": (
        "characters:\n  - {id: hero, description: a dog}\n  - {id: hero, description: a cat}\n"
        "shots:\n  - {prompt: a}\n",
        "film.yaml:3: characters[1].id: the id hero is taken by character 1; nearest valid: hero-2",
    ),
    "a take that is not rendered": (
        "shots:\n  - {prompt: a, takes: 2, take: 3}\n",
        "film.yaml:2: shot s1: take: take 3 is chosen, but takes is 2; nearest valid: 2",
    ),
    "a take of one": (
        "shots:\n  - {prompt: a, take: 2}\n",
        "film.yaml:2: shot s1: take: take 2 is chosen, but takes is 1; nearest valid: 1",
    ),
    "a size as number list": (
        "size: [96, 64]\nshots:\n  - prompt: a\n",
        "film.yaml:1: size: must be WIDTHxHEIGHT in pixels, e.g. 96x64, not a list",
    ),
    "a transition as true": (
        "shots:\n  - prompt: a\n  - prompt: b\n    transition: true\n",
        "film.yaml:4: shot s2: transition: must be cut, crossfade or {type: crossfade, duration_s: "
        "0.5}, not the true/false value true",
    ),
    "an unlisted number": (
        "shots:\n  - prompt: a\n    duration_s: soon\n",
        "film.yaml:3: shot s1: duration_s: must be a number, not the text 'soon'",
    ),
    "everything wrong at once": (
        "title: on\nfps: 500\n"
        "shots:\n  - prompt: a\n    steps: 0\n    continues: s9\n  - promt: b\n    seed: 1.5\n",
        "film.yaml:1: title: must be text, not the true/false value on; nearest valid: \"on\"",
        "film.yaml:2: fps: 500 is above 240; nearest valid: 240",
        "film.yaml:5: shot s1: steps: 0 is below 1; nearest valid: 1",
        "film.yaml:6: shot s1: continues: no shot has the id 's9'; nearest valid: s2",
        "film.yaml:7: shot s2: prompt: is required",
        "film.yaml:7: shot s2: promt: unknown field; nearest valid: prompt",
        "film.yaml:8: shot s2: seed: must be a whole number, not the number 1.5; nearest valid: 1 or 2",
    ),
}


@pytest.mark.parametrize(("text", "expected"), [(row[0], row[1:]) for row in TABLE.values()], ids=TABLE)
def test_a_malformed_storyboard_gets_exactly_this_message(text: str, expected: tuple[str, ...]) -> None:
    with pytest.raises(InvalidDocument) as refused:
        parse_storyboard(text, file="film.yaml")
    assert str(refused.value).split("\n") == list(expected)


def test_more_than_a_thousand_shots_are_refused() -> None:
    with pytest.raises(InvalidDocument) as refused:
        parse_storyboard("shots:\n" + "  - prompt: a\n" * 1001, file="film.yaml")
    assert str(refused.value) == "film.yaml:1: shots: has 1001 entries; at most 1000 are taken"


def test_of_very_many_problems_the_first_hundred_are_told() -> None:
    with pytest.raises(InvalidDocument) as refused:
        parse_storyboard("".join(f"k{number}: 1\nk{number}: 2\n" for number in range(200)) + "shots: [{prompt: a}]\n")
    assert len(refused.value.problems) == MAX_PROBLEMS + 1
    assert str(refused.value).endswith("\nand 200 problems or more besides these")


def test_a_problem_names_shot_field_and_nearest_value_apart() -> None:
    with pytest.raises(InvalidDocument) as refused:
        parse_storyboard(TABLE["a fade without time"][0], file="film.yaml")
    (problem,) = refused.value.problems
    assert (problem.line, problem.shot_id, problem.field, problem.nearest) == (4, "s2", "transition.duration_s", "0.01")


def test_a_storyboard_built_wrong_in_code_is_refused_too() -> None:
    with pytest.raises(ValidationError, match=r"shots\[0\].continues: no shot has the id 's9'"):
        Storyboard(shots=(Shot(id="s1", prompt="a ball", continues="s9"),))

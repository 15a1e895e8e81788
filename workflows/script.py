"""Script -> storyboard by fixed rules: a screenplay in Fountain notation, or plain paragraphs. Knows no model.

Fountain (a file called *.fountain, or text with a scene heading or a title page):
  * Each paragraph of action is a shot; its prompt is the paragraph, then the scene's place and time.
  * Dialogue is the caption (`ANNA: Look!`) of the shot before it in the same scene; where that has one already, or
    there is none, of a new shot of the speaker. Parentheticals are not shown.
  * DISSOLVE TO, CROSSFADE TO and FADE TO (not: to black) are crossfades into the next shot; all else is a cut.
  * A scene heading with nothing under it is a shot of the place.
  * Notes, boneyard, sections and synopses are left out.
Plain paragraphs:
  * Each paragraph is a shot. The first `# heading` is the title, further ones are left out, and so are paragraphs
    without a letter or digit (`---`).
Both: action of more than 40 words is split between sentences into several shots, captions of more than 120 characters
into several captions. The same script always gives the same storyboard.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import PurePath

from workflows.fountain import Kind, Screenplay, is_fountain, place_words, read_fountain, unmarked
from workflows.prompt import closed, count_words, one_line
from workflows.source import DocPath, Document, checked_text, refusal
from workflows.storyboard import MAX_SHOTS, FilmFields, Storyboard, checked_storyboard
from workflows.types import Json

WORDS_PER_SHOT = 40
"""More is more than one picture can show, and close to what short text encoders (77 tokens) read."""
CAPTION_CHARACTERS = 120
"""Two lines of a subtitle are at most 84; three still fit under a picture."""

_SCRIPT_SUFFIXES = (".fountain", ".txt", ".md")
_DOCUMENT_SUFFIXES = (".yaml", ".yml", ".json")
_STORYBOARD_KEY = re.compile(r"^(shots|characters|defaults)[ \t]*:", re.MULTILINE)
_SENTENCE_END = re.compile("(?<=[.!?\u2026])[\"'\u201d\u2019)]*\\s+|(?<=[\u3002\uff01\uff1f])\\s*")
_ABBREVIATIONS = (" mr.", " mrs.", " ms.", " dr.", " st.", " prof.", " jr.", " sr.", " vs.", " e.g.", " i.e.")
_LONGEST_ABBREVIATION = max(map(len, _ABBREVIATIONS))


def looks_like_script(text: str, file: str = "") -> bool:
    """Whether a text is a script rather than a storyboard: by the file's ending, else by what stands in it."""
    suffix = PurePath(file).suffix.lower()
    if suffix in _SCRIPT_SUFFIXES or suffix in _DOCUMENT_SUFFIXES:
        return suffix in _SCRIPT_SUFFIXES
    return not text.lstrip("\ufeff \t\r\n").startswith("{") and not _STORYBOARD_KEY.search(text)


def parse_script(text: str, *, file: str = "", film: FilmFields | None = None) -> Storyboard:
    """Break a script into shots; `film` says what a script cannot: size, frame rate, seed, style.

    Raises InvalidDocument for text that is too long, that holds control characters, or in which nothing can be shot.
    """
    text = checked_text(text, file=file)
    writer = _Writer(file)
    suffix = PurePath(file).suffix.lower()
    title = writer.screenplay(read_fountain(text)) if suffix == ".fountain" or is_fountain(text) else writer.prose(text)
    if not writer.shots:
        raise refusal("the script has nothing to shoot: no action, no dialogue, no scene", file=file)
    film_fields: dict[str, Json] = film.model_dump(mode="json", exclude_defaults=True) if film else {}
    value: dict[str, Json] = {**film_fields, "title": title, "shots": [*writer.shots]}
    return checked_storyboard(Document(value=value, lines=writer.lines), file=file)


def split_sentences(text: str, words: int) -> list[str]:
    """The text in pieces of whole sentences, each of at most `words` words unless one sentence alone has more."""
    pieces: list[str] = []
    for sentence in _sentences(text):
        if pieces and count_words(pieces[-1]) + count_words(sentence) <= words:
            # Chinese and Japanese full stops bring their own space.
            pieces[-1] += sentence if pieces[-1].endswith(("\u3002", "\uff01", "\uff1f")) else f" {sentence}"
        else:
            pieces.append(sentence)
    return pieces


def _sentences(text: str) -> Iterator[str]:
    start = 0
    for match in _SENTENCE_END.finditer(text):
        last_word = f" {text[max(start, match.start() - _LONGEST_ABBREVIATION) : match.start()]}".lower()
        if not last_word.endswith(_ABBREVIATIONS):
            yield text[start : match.end()].strip()
            start = match.end()
    if text[start:].strip():
        yield text[start:].strip()


class _Writer:
    """Collects shots in order, with the place, the crossfade and the free caption that the next one may use."""

    def __init__(self, file: str) -> None:
        self._file = file
        self.shots: list[dict[str, Json]] = []
        self.lines: dict[DocPath, int] = {}
        self._place = ""
        self._scene_start = 0
        self._fades = False

    def screenplay(self, play: Screenplay) -> str:
        """Take all shots of a screenplay; returns its title."""
        heading_line = 0
        for element in play.elements:
            match element.kind:
                case Kind.HEADING:
                    self._establish(heading_line)
                    self._place, self._scene_start = place_words(element.text), len(self.shots)
                    heading_line = element.line
                case Kind.ACTION:
                    self._show(element.text, element.line)
                case Kind.DIALOGUE:
                    self._say(element.speaker, element.text, element.line)
                case Kind.TRANSITION:
                    fade = re.search(r"\b(DISSOLVE|CROSS-?FADE|FADE) TO\b", element.text)
                    self._fades = bool(fade) and "BLACK" not in element.text
        self._establish(heading_line)
        return play.title

    def prose(self, text: str) -> str:
        """Take all shots of plain paragraphs; returns the title."""
        title = ""
        paragraph: list[str] = []
        for number, line in enumerate([*text.splitlines(), ""], start=1):
            is_heading = re.match(r"[ \t]*#{1,6}[ \t]", line) is not None
            if is_heading:
                title = title or one_line(unmarked(line.strip(" \t#")))
            if line.strip() and not is_heading:
                paragraph.append(line)
            elif paragraph:
                self._show(one_line(unmarked(" ".join(paragraph))), number - len(paragraph))
                paragraph = []
        return title

    def _establish(self, line: int) -> None:
        """A scene with nothing in it is a shot of its place."""
        if self._place and len(self.shots) == self._scene_start:
            place, self._place = self._place, ""
            self._add(place, line)

    def _show(self, told: str, line: int) -> None:
        for piece in split_sentences(told, WORDS_PER_SHOT):
            if re.search(r"\w", piece):
                self._add(piece, line)

    def _add(self, prompt: str, line: int) -> None:
        if len(self.shots) == MAX_SHOTS:
            raise refusal(f"a film has at most {MAX_SHOTS} shots; here begins one more", file=self._file, line=line)
        if self._place:
            prompt = f"{closed(prompt)} {self._place}."
        shot: dict[str, Json] = {"id": f"s{len(self.shots) + 1}", "prompt": prompt}
        if self._fades and self.shots:
            shot["transition"] = "crossfade"
        self._fades = False
        self.lines["shots", len(self.shots)] = line
        self.shots.append(shot)

    def _say(self, speaker: str, text: str, line: int) -> None:
        caption = f"{speaker}: {text}" if speaker and text else text
        for piece in textwrap.wrap(caption, CAPTION_CHARACTERS):
            if len(self.shots) == self._scene_start or "caption" in self.shots[-1]:
                self._add(f"{speaker or 'Somebody'} speaks.", line)
            self.shots[-1]["caption"] = piece

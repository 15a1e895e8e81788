"""Contact sheets: rows of frames under their titles, as one JPEG. Knows no model.

`python -m serve_app.models.sketch.sheet FILM --out JPG` makes one of a film: a row for every two seconds or so.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from workflows.media.decode import read_frames

FRAMES_PER_ROW = 5
TITLE_PX = 22
COLUMNS = 2
INK, PAPER = (236, 236, 236), 24
JPEG_QUALITY = 88


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One clip on a sheet."""

    title: str
    frames_THWC: np.ndarray
    """uint8 RGB; all rows of a sheet have frames of one size."""


def write_sheet(rows: Sequence[Row], path: Path) -> None:
    """Write rows of five frames each, in two columns, as a JPEG at half of the frames' size or so."""
    drawn = [_draw(row) for row in rows]
    if len(drawn) % COLUMNS:
        drawn.append(np.full_like(drawn[0], PAPER))
    half = len(drawn) // COLUMNS
    sheet = np.concatenate([np.concatenate(drawn[i * half:(i + 1) * half]) for i in range(COLUMNS)], axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])


def _draw(row: Row) -> np.ndarray:
    picks = row.frames_THWC[np.linspace(0, len(row.frames_THWC) - 1, FRAMES_PER_ROW).round().astype(int)]
    height, width = 8 * (picks.shape[1] * 3 // 40), 8 * (picks.shape[2] * 3 // 40)
    small = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in picks]
    strip = np.concatenate(small, axis=1)
    title = np.full((TITLE_PX, strip.shape[1], 3), PAPER, np.uint8)
    cv2.putText(title, row.title, (6, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK, 1, cv2.LINE_AA)
    return np.concatenate([title, strip])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("film", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=10, help="equal parts of the film, a row each")
    args = parser.parse_args()
    frames = read_frames(args.film)
    parts = np.array_split(np.arange(len(frames)), args.rows)
    write_sheet([Row(title=f"frames {part[0]} to {part[-1]}", frames_THWC=frames[part]) for part in parts], args.out)


if __name__ == "__main__":
    main()

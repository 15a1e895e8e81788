"""What was looked at, and how it is: one line of `reelray doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workflows.types import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    level: Literal["ok", "note", "fail"]
    what: str
    text: str

    def to_json(self) -> dict[str, Json]:
        """As plain data."""
        return {"level": self.level, "what": self.what, "text": self.text}

"""The page's own files: templates, style, scripts and the examples of its editor. Knows nothing."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent
TEMPLATES = HERE / "templates"
STATIC = HERE / "static"
EXAMPLES = HERE / "examples"

"""The picture of the rooms in ARCHITECTURE.md is the one that the imports draw."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = {
    # part of the picture -> the modules it stands for; the longest matching prefix wins
    "configs": ("configs",),
    "vocabulary": ("workflows.types", "workflows.tiers", "workflows.retakes", "workflows.errors", "workflows.ports",
                   "workflows.progress", "workflows.edit_ports", "workflows.deadline"),
    "doors": ("workflows.edit_doors",),
    "document": ("workflows.",),
    "dispatch": ("workflows.dispatch", "workflows.division", "workflows.elastic", "workflows.estimate",
                 "workflows.fair_queue", "workflows.placement", "workflows.scaling"),
    "durable": ("workflows.durable",),
    "store": ("workflows.store", "workflows.store_outage", "workflows.checkpoints"),
    "status": ("workflows.status", "workflows.telling", "workflows.edit_status"),
    "upkeep": ("workflows.upkeep",),
    "media": ("workflows.media",),
    "stages": ("workflows.stages",),
    "actors": ("actors",),
    "models": ("serve_app.models",),
    "deployments": ("serve_app.app", "serve_app.deployments", "serve_app.director", "serve_app.media_worker",
                    "serve_app.handles", "serve_app.ingress", "serve_app.leaving", "serve_app.routing",
                    "serve_app.scaling", "serve_app.scaling_policy"),
    "service": ("serve_app.service", "serve_app.http", "serve_app.web", "serve_app.submit",
                "serve_app.edit_submit"),
    "webhooks": ("serve_app.webhooks",),
    "providers": ("serve_app.providers",),
    "writers": ("serve_app.writers",),
    "commands": ("serve_app.",),
    "cluster": ("serve_app.cluster", "serve_app.capacity", "serve_app.sharing"),
}


def part_of(module: str) -> str:
    matches = [(len(prefix), part) for part, prefixes in PARTS.items() for prefix in prefixes
               if module == prefix or module.startswith(prefix if prefix.endswith(".") else prefix + ".")]
    return max(matches)[1] if matches else ""


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name for name in found if name.split(".")[0] in {"configs", "workflows", "actors", "serve_app"}}


def real_arrows() -> set[tuple[str, str]]:
    arrows = set()
    for room in ("configs", "workflows", "actors", "serve_app"):
        for path in (ROOT / room).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            for name in imported(path):
                if name in {"configs", "workflows", "actors", "serve_app"}:
                    continue
                arrows.add((part_of(module), part_of(name)))
    return {(a, b) for a, b in arrows if a and b and a != b}


def drawn_arrows() -> set[tuple[str, str]]:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    picture = re.search(r"<!-- imports -->\s*```mermaid(.*?)```", text, re.DOTALL)
    assert picture, "ARCHITECTURE.md has no picture marked <!-- imports -->"
    arrows = set()
    for line in picture.group(1).splitlines():
        match = re.match(r"\s*(\w+) --> ([\w &]+)$", line)
        if match:
            arrows |= {(match.group(1), target.strip()) for target in match.group(2).split("&")}
    return arrows


def test_the_picture_shows_every_import_and_no_other() -> None:
    missing, extra = real_arrows() - drawn_arrows(), drawn_arrows() - real_arrows()
    assert not missing, f"not in the picture: {sorted(missing)}"
    assert not extra, f"drawn, but not imported: {sorted(extra)}"


def test_no_part_imports_a_part_that_imports_it() -> None:
    arrows = real_arrows()
    assert {(a, b) for a, b in arrows if (b, a) in arrows} == set()

"""Settings as commented YAML: the docstring under each field is its only documentation."""

from __future__ import annotations

import textwrap

import yaml
from pydantic import BaseModel, JsonValue


def commented_yaml(model: BaseModel, *, indent: int = 0) -> str:
    """Every field of a settings tree with its meaning above it; reads back as the same settings."""
    lines: list[str] = []
    values = model.model_dump(mode="json")
    for name, field in type(model).model_fields.items():
        if field.description:
            lines += textwrap.wrap(" ".join(field.description.split()), 100 - indent, initial_indent="# ",
                                   subsequent_indent="# ")
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            lines += [f"{name}:", commented_yaml(value, indent=2).rstrip("\n")]
        else:
            lines.append(_assignment(name, values[name]))
    return textwrap.indent("\n".join(lines) + "\n", " " * indent)


def _assignment(name: str, value: JsonValue) -> str:
    return yaml.safe_dump({name: value}, default_flow_style=False, sort_keys=False, allow_unicode=True).rstrip("\n")

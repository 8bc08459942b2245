"""Every option of the edge as text: the commented file examples/edge.toml, and the table of docs/edge.md.

python -m infercache.edge.option_tables > examples/edge.toml
python -m infercache.edge.option_tables --table
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import Field, fields
from typing import Any

from infercache.edge.settings import Settings

__all__ = ["example", "options", "table"]


def options() -> Iterable[tuple[Field[Any], str, str, str]]:
    """Each option, its section, its text, and its default as TOML; "" where it has none."""
    for option in fields(Settings):
        about = option.metadata["about"]
        yield option, about.section, about.text, _toml(option)


def _toml(option: Field[Any]) -> str:
    default = {} if callable(option.default_factory) else option.default
    if default is None or default == {}:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return "[" + ", ".join(f'"{each}"' for each in default) + "]"
    return str(default) if isinstance(default, int) else f'"{default}"'


def example() -> str:
    """A file with every option, its meaning and its default (`examples/edge.toml`)."""
    lines = [
        "# Every option of `infercache serve --config FILE` with its default; those without one are commented out.",
        "# Written by `python -m infercache.edge.option_tables`.",
    ]
    known = list(options())
    for section in dict.fromkeys(section for _, section, _, _ in known):
        lines += ["", f"# {section}", "# " + "-" * 100]
        for option, of, text, default in known:
            if of == section:
                line = (
                    f"{option.name} = {default}" if default else f"# {option.name} = {option.metadata['about'].example}"
                )
                lines += ["", f"# {text}", line]
    return "\n".join(lines) + "\n"


def table() -> str:
    """The table of docs/edge.md."""
    lines = []
    known = list(options())
    for section in dict.fromkeys(section for _, section, _, _ in known):
        lines += [f"**{section}**", "", "| option | default | |", "| --- | --- | --- |"]
        lines += [
            f"| `{option.name}` | {f'`{default}`' if default else ''} | {text} |"
            for option, of, text, default in known
            if of == section
        ]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    import sys

    sys.stdout.write(table() if "--table" in sys.argv else example())

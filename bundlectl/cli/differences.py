"""How differences are written: settings as old -> new, texts as coloured diffs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from bundlectl.insight.diff import Setting

MARK = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow"), "renamed": (">", "cyan")}


def settings_lines(out: Console, settings: list[Setting]) -> None:
    """Print settings, one a line."""
    from rich.text import Text

    for setting in settings:
        sign, style = MARK[setting.kind]
        if setting.kind == "changed":
            said = f"{value(setting.a)} -> {value(setting.b)}"
        else:
            said = value(setting.b if setting.kind == "added" else setting.a)
        out.print(Text(f"  {sign} ", style=style) + Text(f"{setting.path}: {said}"))


def value(found: Any) -> str:
    """Write a JSON value on one line, cut when it is long."""
    text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    return text if len(text) <= 160 else text[:157] + "…"

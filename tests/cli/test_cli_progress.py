"""The bar of a long run: how many, how fast, how long still; and what it has spent, where it costs anything."""

from __future__ import annotations

import re

from tests.cli.test_cli_manners import ESCAPE, _on_terminal, live, work
from tests.support.workspace import Workspace

__all__ = ["live", "work"]  # fixtures


def test_the_bar_shows_rate_and_time_left_on_a_terminal_only(work: Workspace) -> None:
    _, shown = _on_terminal(work, "eval", ".", "--unsigned", "--no-cache", COLUMNS="150")
    plain = re.sub(rf"{re.escape(ESCAPE)}[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"━ *\d+/\d+ [0-9.e+-]+/s \d:\d\d:\d\d", plain), plain

"""A workspace in which one version of the app is live everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.workspace import Workspace


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    return Workspace.at(tmp_path, live=True)

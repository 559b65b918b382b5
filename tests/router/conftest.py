"""What the router makes without checking it is checked here, in every test."""

from __future__ import annotations

from typing import Any

import pytest

from bundlectl.model.types import Strict


@pytest.fixture(autouse=True)
def _checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make everything twice: unchecked as the router does, and checked; both must be equal."""
    unchecked = Strict.unchecked.__func__  # type: ignore[attr-defined]

    def both(cls: type[Strict], values: dict[str, Any]) -> Strict:
        made: Strict = unchecked(cls, values)
        checked = cls(**values)
        assert made == checked and made.form() == checked.form()
        return made

    monkeypatch.setattr(Strict, "unchecked", classmethod(both))

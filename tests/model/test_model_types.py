"""What a model finds wrong, told in a line that may stand in a log."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from bundlectl.model.types import Strict, wrong_fields


def test_what_is_wrong_is_one_line_without_what_stands_there() -> None:
    class Two(Strict):
        a: int
        b: int

    with pytest.raises(ValidationError) as caught:
        Two.model_validate({"a\n2026 serving": "secret", "a": "secret", "c": 1, "d": 1})
    said = wrong_fields(caught.value)
    assert "\n" not in said and "secret" not in said and "pydantic" not in said
    assert said.startswith("a: Input should be a valid integer; b: Field required; a\\n2026 serving: Extra inputs")
    assert said.endswith("; and 2 more")

"""The region that an ARN names."""

from __future__ import annotations

import re

_ARN_REGION = re.compile(r"arn:aws[a-z-]*:[a-z0-9-]+:([a-z0-9-]+):")


def region_of(arn: str | None) -> str | None:
    """Give the region of an ARN; ``None`` for a name that is none."""
    found = _ARN_REGION.match(arn or "")
    return found[1] if found else None

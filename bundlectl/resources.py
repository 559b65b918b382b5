"""Where packaged data is found: in the wheel under ``bundlectl/data``, else in the checkout beside the package."""

from __future__ import annotations

from pathlib import Path

from bundlectl.model.errors import UsageError

_PACKAGE = Path(__file__).resolve().parent


def data_root() -> Path:
    """Give the folder that holds ``bundles/``, ``evals/``, ``schemas/``, ``docs/`` and ``README.md``.

    Raises:
        UsageError: the installation lacks them.
    """
    for root in (_PACKAGE / "data", _PACKAGE.parent):
        if (root / "bundles" / "support").is_dir() and (root / "evals").is_dir():
            return root
    raise UsageError(
        "The example content is not part of this installation.",
        fix="Install bundlectl from its wheel, or run it from a checkout.",
    )


def template(name: str) -> str:
    """Give a CloudFormation template of a registry: ``registry``, ``app`` or ``environment``."""
    return (_PACKAGE / "templates" / f"{name}.cloudformation.yaml").read_text(encoding="utf-8")

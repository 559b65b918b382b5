"""The price book: US dollars per million tokens, by provider and model; what is not in it has no known price.

The book that comes with bundlectl, ``prices.json``, holds the providers' public on-demand list prices of its version
(Amazon Bedrock: us-east-1). It knows no discounts and no surcharges, and nothing that it does not name; who has other
prices names a file of the same form in ``BUNDLECTL_PRICE_BOOK``. Receipts name the book's version, so an old cost
stays what it was.

A model of Bedrock stands under the id or inference profile that is called, with ``@`` and its service tier behind
it where that is not the default one, and the region and ``/`` before it outside of us-east-1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, ValidationError

from bundlectl.model.contract import Cost, Usage
from bundlectl.model.errors import NotFound, UsageError
from bundlectl.model.types import Strict

MILLION = 1_000_000
MAX_BOOK = 4 * 1024 * 1024
VARIABLE: Final = "BUNDLECTL_PRICE_BOOK"

_OURS: Final = Path(__file__).with_name("prices.json")

Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Price(Strict):
    """US dollars per million tokens; what is absent is not known."""

    input: Dollars
    output: Dollars
    cache_read: Dollars | None = None
    cache_write_5m: Dollars | None = None
    cache_write_1h: Dollars | None = None


class _Entry(Price):
    provider: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(min_length=1)]


class _Book(Strict):
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    currency: Annotated[str, Field(pattern=r"^USD$")]
    prices: list[_Entry]


@dataclass(frozen=True, slots=True)
class PriceBook:
    """Prices by ``(provider, model)``. ``version`` names the book in receipts; ``currency`` is ISO 4217."""

    version: str
    currency: str
    prices: Mapping[tuple[str, str], Price]

    @property
    def name(self) -> str:
        """How receipts name the book: currency and version."""
        return f"{self.currency}-{self.version}"

    def usd(self, provider: str, model: str | None, usage: Usage) -> float | None:
        """Give what one attempt cost; ``None`` when a price is not known, 0 for providers without a model."""
        if provider == "extractive":
            return 0.0
        price = self.prices.get((provider, model or ""))
        if price is None:
            return None
        total = usage.output_tokens * price.output
        plain = usage.input_tokens
        for tokens, each in (
            (usage.cache_read_tokens, price.cache_read),
            (usage.cache_write_5m_tokens, price.cache_write_5m),
            (usage.cache_write_1h_tokens, price.cache_write_1h),
        ):
            if tokens:
                if each is None:
                    return None
                plain -= tokens
                total += tokens * each
        return (max(plain, 0) * price.input + total) / MILLION

    def cost(self, attempts: Iterable[tuple[str, str | None, Usage]]) -> Cost:
        """Add up attempts given as (provider, model, usage); one unknown price makes the sum unknown.

        An attempt that used no tokens (refused, disabled, never reached) costs nothing whatever its price.
        """
        total = 0.0
        for provider, model, usage in attempts:
            if not usage.input_tokens and not usage.output_tokens:
                continue
            spent = self.usd(provider, model, usage)
            if spent is None:
                return Cost(usd=None, price_book=self.name)
            total += spent
        return Cost(usd=total, price_book=self.name)


def read_price_book(path: Path) -> PriceBook:
    """Read a book from a JSON file: ``{"version", "currency": "USD", "prices": [{"provider", "model", …}]}``.

    Raises:
        NotFound: the file cannot be read.
        UsageError: it is not a price book, or it prices a model twice.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BOOK + 1)
    except OSError as error:
        raise NotFound(f"The price book {path} cannot be read.", why=error.strerror or "") from error
    if len(data) > MAX_BOOK:
        raise UsageError(f"The price book {path} is larger than {MAX_BOOK} bytes.")
    try:
        book = _Book.model_validate_json(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in found["loc"])
        raise UsageError(
            f"{path} is not a price book.",
            why=f"{place}: {found['msg']}" if place else found["msg"],
            fix="Give it the form of bundlectl's own prices.json.",
        ) from error
    prices: dict[tuple[str, str], Price] = {}
    for entry in book.prices:
        key = (entry.provider, entry.model)
        if key in prices:
            raise UsageError(f"The price book {path} has two prices for {entry.model} of {entry.provider}.")
        prices[key] = entry
    return PriceBook(version=book.version, currency=book.currency, prices=prices)


def open_price_book(environ: Mapping[str, str]) -> PriceBook:
    """Give the book that ``BUNDLECTL_PRICE_BOOK`` names, else bundlectl's own.

    Raises:
        NotFound: it names a file that cannot be read.
        UsageError: it names one that is not a price book.
    """
    named = environ.get(VARIABLE, "").strip()
    return read_price_book(Path(named)) if named else PRICE_BOOK


PRICE_BOOK: Final = read_price_book(_OURS)
"""The book of this version of bundlectl."""

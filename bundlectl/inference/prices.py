"""The price book: US dollars per million tokens, by provider and model id; what is not in it has no known price.

Prices are the providers' public on-demand list prices (Amazon Bedrock: us-east-1). Discounts, caching and
batch prices are not in it. Receipts name the book's version, so an old cost stays what it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from bundlectl.model.contract import Cost, Usage

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens."""

    input: float
    output: float


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
        """Give what one attempt cost; ``None`` when the price is not known, 0 for providers without a model."""
        if provider == "extractive":
            return 0.0
        price = self.prices.get((provider, model or ""))
        if price is None:
            return None
        return (usage.input_tokens * price.input + usage.output_tokens * price.output) / MILLION

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


PRICE_BOOK = PriceBook(
    version="2025-06",
    currency="USD",
    prices=MappingProxyType(
        {
            ("bedrock", "amazon.nova-micro-v1:0"): Price(0.035, 0.14),
            ("bedrock", "amazon.nova-lite-v1:0"): Price(0.06, 0.24),
            ("bedrock", "amazon.nova-pro-v1:0"): Price(0.80, 3.20),
            ("openai", "gpt-4o"): Price(2.50, 10.00),
            ("openai", "gpt-4o-mini"): Price(0.15, 0.60),
            ("openai", "gpt-4.1"): Price(2.00, 8.00),
            ("openai", "gpt-4.1-mini"): Price(0.40, 1.60),
            ("openai", "gpt-4.1-nano"): Price(0.10, 0.40),
        }
    ),
)
"""The book of this version of bundlectl."""

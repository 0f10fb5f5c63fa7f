"""A model card as JSON and as text."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dsctl.plan.model_card import Card, markdown

__all__ = ["as_json", "markdown"]


def as_json(card: Card) -> dict[str, Any]:
    """The facts and the text as stable JSON."""
    return asdict(card) | {"base": card.base or None, "commit": card.commit or None,
                           "relation": card.relation or None, "text": markdown(card)}  # fmt: skip

"""The cards at the top of a page."""

from __future__ import annotations

from typing import NamedTuple

# The least share, in percent, that is printed as a number.
LEAST = 0.005


class Card(NamedTuple):
    """One answer: its subject, a figure or a few words, and details. `kind` is a key of the page's colours (added,
    removed, changed, saves, costs); the label has the same meaning in words."""

    label: str
    figure: str
    detail: str = ""
    kind: str = ""


def change(before: float, after: float) -> str:
    """+0.13 % if the share is small; 13.3x less or 2.1x more if it is large; empty without a value before."""
    if not before or not after:
        return ""
    ratio = after / before
    if ratio >= 2 or ratio <= 0.5:
        return f"{ratio:.1f}x more" if ratio > 1 else f"{1 / ratio:.1f}x less"
    share = 100 * (ratio - 1)
    if 0 < abs(share) < LEAST:
        return f"less than {LEAST} % {'more' if share > 0 else 'less'}"
    digits = 2 if abs(share) < 1 else 1
    return "same" if after == before else f"{share:+.{digits}f} %".replace("-", "\N{MINUS SIGN}")

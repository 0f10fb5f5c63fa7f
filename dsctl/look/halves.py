"""The part of a model that reading a prompt takes, if it is not all of it. Numbers.

DeepSeek-V4.1-Flash, technical report, section 2.2 (causal encoder-decoder): later layers read caches that are made of
the state halfway, so that a prompt passes the first half of the layers. Only its last window of tokens passes all.
"""

from __future__ import annotations

from dsctl.checkpoint.groups import Group
from dsctl.look.costs import Attention, attention
from dsctl.look.description import Description, active


def passed_layers(description: Description) -> int | None:
    """The number of main layers that every token of a prompt passes; None if these are all layers, or not known."""
    found = attention(description)
    return found.passed if found and found.passed < found.layers else None


def prompt_values(description: Description) -> int | None:
    """Values that a token of a prompt is multiplied with; None if these are all active values, or not known.

    The head counts for generated tokens only.
    """
    found = attention(description)
    if found is None or found.passed == found.layers:
        return None
    return sum(_passed(group, found) for group in description.known)


def _passed(group: Group, found: Attention) -> int:
    """A group's active values in the layers that a prompt passes, and those that fill the caches of later layers."""
    if not group.layers:
        return 0 if group.family.last else active(group)
    if set(group.layers) <= set(found.owners) and group.family.split is None:
        # The compressors and keys of owners. All ranks share a cache, so that its makers are whole on every rank.
        return active(group)
    return active(group) * sum(layer < found.passed for layer in group.layers) // len(group.layers)

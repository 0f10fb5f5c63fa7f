"""The description of a checkpoint or a release, family by family: the value that all looking verbs work on.

It has the parameters, their formats and the totals. `look/opened.py` describes files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from dsctl import models, releases
from dsctl.checkpoint.groups import Group, Known, groups_of_release
from dsctl.checkpoint.origin import Origin
from dsctl.core.amounts import count, plural, size
from dsctl.core.config_fields import TEXT, text_fields
from dsctl.core.errors import FormatError, UsageError
from dsctl.core.params import MTP, OTHER, PLAIN_TRAITS, Drafter, Family, Traits, drafter_of
from dsctl.core.visible import shortened
from dsctl.releases import Release


@dataclass(frozen=True, slots=True)
class Description:
    """One checkpoint. `release` is set for a published one. `config` are the fields of its language model, wherever
    `config.json` nests them. `missing` are parameters of the architecture that the files lack, `faults` are other
    problems of the files, and `part` names the missing ranks. `nested`: `config.json` has a `text_config`."""

    name: str
    place: str
    release: Release | None
    config: Mapping[str, Any]
    model: str | None
    groups: tuple[Group, ...]
    files: int | None = None
    missing: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    part: str = ""
    traits: Traits = PLAIN_TRAITS
    nested: bool = False

    def __repr__(self) -> str:
        return f"<Description {shortened(self.name)}: {self.summary}>"

    @property
    def summary(self) -> str:
        """Its architecture and sizes in a few words."""
        if self.model is None:
            return f"unknown architecture, {plural(self.tensors, 'tensor')}, {size(self.nbytes)}"
        return f"{self.model}, {plural(self.parameters, 'parameter')}, {count(self.values)} values, {size(self.nbytes)}"

    @property
    def contents(self) -> Known:
        """The input for a plan without files."""
        model = models.MODELS[self.model] if self.model else None
        return Known(self.name, self.config, model, self.groups, self.traits)

    @property
    def kind(self) -> str:
        """release, folder (or a file in one), store or repository."""
        return self.origin.kind

    @property
    def origin(self) -> Origin:
        """Its origin: built-in data, or the files in a place."""
        if self.release:
            return Origin.of_release(self.release)
        return Origin.of_files("headers and config.json" if self.config else "headers", self.place, self.name)

    @property
    def derived(self) -> bool:
        """Whether its config was derived from another release's, not read."""
        return self.release is not None and self.release.config_derived

    @property
    def alike(self) -> tuple[Release, ...]:
        """The releases whose parameters have the same names and shapes, oldest first."""
        return identify(self.config, self.traits)

    @property
    def published_context(self) -> int | None:
        """Tokens of context in model cards: the release's, or the common one of all releases with the same shapes."""
        found = {release.context for release in ((self.release,) if self.release else self.alike)}
        return found.pop() if len(found) == 1 else None

    @property
    def positions(self) -> int | None:
        """Tokens that the config allows: `max_position_embeddings`, if it is a plausible number."""
        longest = self.config.get("max_position_embeddings")
        return longest if type(longest) is int and 0 < longest < 1 << 32 else None

    @property
    def known(self) -> tuple[Group, ...]:
        """The groups of its architecture's parameters, without tensors that belong to no parameter."""
        return tuple(group for group in self.groups if group.family.role != OTHER)

    @property
    def drafter(self) -> Drafter:
        """The drafter among its tensors."""
        return drafter_of((group.family for group in self.known), self.traits.drafter or MTP)

    @property
    def alone(self) -> bool:
        """Whether it is a drafter without its model."""
        return bool(self.known) and all(group.family.mtp for group in self.known)

    @property
    def parameters(self) -> int:
        return sum(group.count for group in self.known)

    @property
    def values(self) -> int:
        return sum(group.values for group in self.known)

    @property
    def main_values(self) -> int:
        """Values without the MTP layers."""
        return sum(group.values for group in self.known if not group.family.mtp)

    @property
    def active_values(self) -> int:
        """Values that one token is multiplied with, including only the experts chosen for it.

        The embedding, n-gram tables and tables of experts by token are looked up, and vision parts are for images: they
        do not count. The results agree with the active parameters in model cards (V3: 36.6 B, "37B").
        """
        return sum(active(group) for group in self.known)

    @property
    def draft_layers(self) -> int:
        """The number of MTP layers among its tensors; `num_nextn_predict_layers` may be different."""
        return len({layer for group in self.known if group.family.mtp for layer in group.layers})

    @property
    def quantized(self) -> int:
        """The number of parameters that are stored in a quantized format."""
        return sum(group.count for group in self.known if group.codec.quantized)

    @property
    def tensors(self) -> int:
        return sum(group.tensors for group in self.groups)

    @property
    def nbytes(self) -> int:
        return sum(group.nbytes for group in self.groups)


def require_model(description: Description) -> None:
    """Refuse a drafter without its model, where sizes of the model are needed.

    Raises:
        UsageError: it is one.
    """
    if description.alone:
        what = f"{description.name}: a drafter without its model, whose memory cannot be estimated"
        raise UsageError(what, hint="give the model that it drafts for; with its drafter it is estimated as a whole")


def active(group: Group) -> int:
    """The number of values of a group that one token is multiplied with."""
    family = group.family
    if family.mtp or family.below or family.table or family.role in ("embedding", "vision"):
        return 0
    return group.values * family.active // family.experts if family.experts else group.values


def of_release(release: Release) -> Description:
    """The description of a release, from its config and its known formats."""
    model = models.recognise(release.config)
    return Description(
        release.name,
        release.repository,
        release,
        text_fields(release.config),
        model.name,
        groups_of_release(release),
        release.storage.files,
        traits=release.storage.traits,
        nested=TEXT in release.config,
    )


def identify(config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> tuple[Release, ...]:
    """The releases whose parameters have the same names and shapes as this config's, oldest first.

    Raises:
        FormatError: a field that sets a shape is missing or absurd.
    """
    try:
        model = models.recognise(config)
    except FormatError:
        return ()
    families = _shaped(model.families(config, traits))
    return tuple(
        release
        for release in releases.releases()
        if release.architecture == model.name and _shaped_of(release.name) == families
    )


@cache
def _shaped_of(name: str) -> list[Family]:
    release = releases.find(name)
    return _shaped(models.MODELS[release.architecture].families(release.config, release.storage.traits))


def _shaped(families: Iterable[Family]) -> list[Family]:
    """Families without dtypes, and without the shapes of parameters that follow from the config."""
    return [replace(one, dtype="", shape=() if one.derived else one.shape) for one in families]

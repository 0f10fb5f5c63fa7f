"""Extras of dsctl: is torch installed, and the command that installs an extra. Never loads torch."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

from dsctl.core.errors import PlanError

# The file that each installer of programs leaves in the environment it makes (uv 0.11, pipx 1.8) -> its command.
_INSTALLERS = {"uv-receipt.toml": "uv tool install", "pipx_metadata.json": "pipx install --force"}

# The folder of uv's cache that holds the environments of `uvx`.
_ONCE = "archive-v"


def require_torch(what: str) -> None:
    """Refuse `what`, such as "writing weights", if torch is not installed. Takes well under a millisecond.

    Raises:
        PlanError: torch is not installed.
    """
    if not has_torch():
        raise PlanError(f"{what} needs torch, which is not installed", hint=install_command("torch"))


def has_torch() -> bool:
    """Whether torch is installed; it is not imported."""
    return find_spec("torch") is not None


def install_command(extra: str) -> str:
    """The command that adds an extra to this installation, as pip, `uv tool`, pipx or `uvx` made it."""
    for file, words in _INSTALLERS.items():
        if Path(sys.prefix, file).is_file():
            return f"{words} 'dsctl[{extra}]{_origin()}'"
    if Path(sys.prefix).parent.name.startswith(_ONCE):
        return f"uvx --from 'dsctl[{extra}]{_origin()}' dsctl ..."
    return f"pip install 'dsctl[{extra}]'"


def _origin() -> str:
    """Where dsctl was installed from, as a requirement spells it; empty if that was a package index (PEP 610)."""
    # Loaded late: it takes longer than this module's every other line.
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        text = distribution("dsctl").read_text("direct_url.json")
    except PackageNotFoundError:
        return ""
    if text is None:
        return ""
    found = json.loads(text)
    version_control = found.get("vcs_info")
    return f" @ {version_control['vcs']}+{found['url']}" if version_control else f" @ {found['url']}"

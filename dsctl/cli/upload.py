"""`dsctl upload`: upload a finished folder to a repository on a hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dsctl.cli.commands import RUNNING
from dsctl.cli.groups import PrintOptions, verb
from dsctl.cli.hints import resumable
from dsctl.cli.options import DryRun
from dsctl.core.errors import UsageError
from dsctl.look.card import card as facts
from dsctl.run.finished import README, Finished, finished
from dsctl.run.upload_order import UploadOrder, visibility
from dsctl.run.uploading import Uploading
from dsctl.show.cards import markdown
from dsctl.show.output import Output
from dsctl.show.uploads import UploadBars, show_notes, show_order, show_result
from dsctl.stores import SIGNED
from dsctl.stores.repositories import Content, RepositoryName, RepositoryWriter
from dsctl.version import __version__

Folder = Annotated[str, typer.Argument(metavar="DIR", help="A folder on this machine.")]
Repository = Annotated[
    str, typer.Argument(metavar="DST", help="The repository and its branch, as hf://org/name[@branch].")
]
Public = Annotated[
    bool, typer.Option("--public", help="Make a repository that does not exist public instead of private.")
]
Private = Annotated[bool, typer.Option("--private", help="Fail if the repository exists and is public.")]
NoCard = Annotated[bool, typer.Option("--no-card", help="Do not add a card if the folder has no README.md.")]
Message = Annotated[
    str | None, typer.Option("--message", "-m", metavar="TEXT", help="Use this as the message of the last commit.")
]
Replace = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Continue if files would be replaced, or if the branch has other weights.",
        rich_help_panel=RUNNING,
    ),
]


@verb
def upload(
    folder: Folder,
    target: Repository,
    *,
    public: Public = False,
    private: Private = False,
    no_card: NoCard = False,
    message: Message = None,
    dry_run: DryRun = False,
    force: Replace = False,
    printing: PrintOptions,
) -> None:
    """Upload a finished folder to a repository on a hub.

    Files that the repository has already are not sent again, so the same command resumes an upload. Files that only the
    repository has stay there. A new repository is private. huggingface_hub's settings apply: HF_ENDPOINT, HF_TOKEN.

    Examples:

        dsctl upload ./DeepSeek-V3.2-bf16 hf://me/DeepSeek-V3.2-bf16 --dry-run

        dsctl upload ./DeepSeek-V3.2-bf16 hf://me/DeepSeek-V3.2-bf16

        dsctl upload ./DeepSeek-V3.2-fp8 hf://me/DeepSeek-V3.2@fp8 --public
    """
    if public and private:
        raise UsageError("--public and --private contradict each other", hint="leave one of them out")
    output, writer = printing.output(), RepositoryWriter.at(target)
    found = finished(folder)
    card = None if no_card else _card(found, writer.name)
    with resumable("continues with the files that the hub does not have"):
        order = UploadOrder(found, card, writer.look(), force)
        for note in visibility(order.state, public, private, writer.place):
            output.note(note)
        show_notes(order, output)
        if dry_run:
            _show_plan(order, writer, output)
            return
        words = message or f"Upload {Path(found.store.root).name} with dsctl {__version__}"
        with UploadBars(order, output) as bars:
            done = Uploading(order, writer, words, bars.checked, bars.sending).run(private=not public)
    show_result(order, writer.name, done, output)


def _card(found: Finished, name: RepositoryName) -> Content | None:
    """The card of a folder that dsctl made and that has no README.md; its heading is the name of the repository."""
    if README in found.files or SIGNED not in found.files:
        return None
    return Content(README, markdown(replace(facts(found.store), place=name.repository)).encode())


def _show_plan(order: UploadOrder, writer: RepositoryWriter, output: Output) -> None:
    """Print the plan; a branch that exists is asked how it will store the files."""
    sorting = None
    if order.state.head is not None:
        unread = set(order.unread)
        sorting = writer.sort([order.folder.sample(name) for name in order.folder.files if name not in unread])
    order.check(writer.place)
    show_order(order, writer.name, sorting, output)

"""The rules that hold the rooms apart: directions of imports, whole tables, what a command may load, what is public."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

import dsctl
from tests.support.command import dsctl as run_dsctl

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dsctl"

# Plug-in folder, its table, and the modules in it that are no plug-ins.
TABLES = {
    "codecs": (
        "CODECS",
        {
            "codec",
            "dress",
            "e4m3",
            "long_rows",
            "facts",
            "grids",
            "group_scales",
            "native_fp4",
            "nibbles",
            "recasts",
            "renumbered",
            "restoring",
            "scales",
            "search",
        },
    ),
    "layouts": (
        "LAYOUTS",
        {"folders", "joins", "layout", "manifests", "naming", "native_config", "ranks", "recognition"},
    ),
    "models": (
        "MODELS",
        {
            "deepseek_v3_config",
            "deepseek_v3_traits",
            "deepseek_v41_config",
            "deepseek_v41_dimensions",
            "deepseek_v41_faults",
            "deepseek_v41_tables",
            "deepseek_v4_config",
            "deepseek_v4_dimensions",
            "deepseek_v4_faults",
            "deepseek_v4_saved",
            "deepseek_v4_vision",
            "kimi_k3_config",
            "model",
        },
    ),
    "stores": (
        "STORES",
        {
            "blocks",
            "download",
            "hub_client",
            "hub_entries",
            "hub_faults",
            "hub_files",
            "hub_guard",
            "hub_listing",
            "hub_requests",
            "joined",
            "places",
            "repositories",
            "repository_client",
            "repository_commits",
            "repository_lfs",
            "repository_requests",
            "repository_xet",
            "sums",
            "threads",
            "uploads",
        },
    ),
    "work.executors": ("EXECUTORS", {"preload", "threads"}),
}
# Third-party package -> the only modules that may import it, by prefix; None: any module.
ROOMS: dict[str, tuple[str, ...] | None] = {
    "backports": ("core.frames",),
    "blake3": ("core.digests",),
    "compression": ("core.frames",),
    "fsspec": (
        "stores.objects",
        "stores.places",
    ),
    "httpx2": (
        "stores.hub_faults",
        "stores.hub_guard",
        "stores.hub_requests",
        "stores.repository_lfs",
        "stores.repository_requests",
    ),
    "huggingface_hub": (
        "stores.hub",
        "stores.hub_client",
        "stores.hub_faults",
        "stores.hub_files",
        "stores.hub_guard",
        "stores.hub_listing",
        "stores.hub_requests",
        "stores.repository_client",
        "stores.repository_commits",
        "stores.repository_lfs",
        "stores.repository_requests",
        "stores.repository_xet",
    ),
    "jinja2": ("show.drawing",),
    "markupsafe": ("show.drawing",),
    "msgspec": None,
    "numpy": None,
    "pygal": ("show.drawing",),
    "rich": ("cli", "show"),
    "safetensors": ("verify.library",),
    "torch": ("work", "codecs", "look.judging", "look.proof_reading", "look.summing", "run.doctor", "tiny"),
    "typer": ("cli",),
    "xxhash": ("checkpoint.delta_form",),
}
# The only modules that load torch when they are themselves imported.
LOADS_TORCH = {
    "codecs.e4m3", "look.judging", "look.proof_reading", "look.summing", "tiny.values", "work.buffers", "work.devices",
    "work.gathering", "work.job", "work.merging", "work.trial", "work.values",
}  # fmt: skip

# Who loads modules of dsctl within a function, in the rooms of the command line and of the Python interface: whoever
# only asks for help, or of a release by its name, does without them, and a page is drawn where one is asked for.
LATE = {
    "": {"api"},
    "__main__": {"cli"},
    "api": {
        "look.compare", "look.proof", "look.proving", "run.carry_out", "run.how", "stores.download", "verify",
        "verify.against",
    },
    "cli.commands": {"cli.app"},
    "cli.compare": {"checkpoint.opening", "look.compare", "show.comparison", "show.pages.comparison"},
    "cli.completion": {
        "checkpoint.delta_form", "cli.app", "codecs", "layouts", "look.accelerators", "look.cache_formats",
        "look.diff", "look.gates", "look.places", "plan.graft_options", "plan.recipes", "plan.request", "releases",
        "run.how", "verify.findings", "work.executors",
    },
    "cli.conversion": {"cli.carrying", "plan.beside", "run.carry_out"},
    "cli.convert": {"cli.conversion", "cli.requests"},
    "cli.delta": {"cli.deltas", "core.frames", "plan.delta_options"},
    "cli.diff": {"show.pages.difference"},
    "cli.doctor": {"run.doctor", "show.machine"},
    "cli.download": {"cli.conversion"},
    "cli.graft": {"cli.grafting", "plan.graft_options"},
    "cli.inspect": {"look.inspection", "show.inspection", "show.pages.inspection"},
    "cli.merge": {"cli.conversion", "cli.requests"},
    "cli.plan": {"show.pages.capacity"},
    "cli.shard": {"cli.conversion", "cli.requests"},
    "cli.slice": {"cli.parts", "cli.requests", "cli.slicing"},
    "cli.tiny": {"tiny", "tiny.blueprint"},
    "cli.verify": {
        "checkpoint.causes", "checkpoint.opening", "cli.proving", "look.proving", "run.mend", "show.annotations",
        "show.findings", "verify", "verify.against", "verify.findings", "verify.repair",
    },
}  # fmt: skip


class Import(NamedTuple):
    """A third-party import: who, what, and whether it happens when the module is loaded."""

    module: str
    package: str
    at_load: bool


def imports() -> Iterator[Import]:
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text())
        typing_only = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if node in typing_only:
                continue
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in {name.partition(".")[0] for name in names} - {"dsctl"} - sys.stdlib_module_names:
                yield Import(module, name, node in tree.body)


def test_imports_go_down_only() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("folder", TABLES)
def test_every_plug_in_is_in_its_table(folder: str) -> None:
    table, others = TABLES[folder]
    package = importlib.import_module(f"dsctl.{folder}")
    files = {module.name for module in pkgutil.iter_modules(package.__path__)}
    entries = [value if isinstance(value, type) else type(value) for value in vars(package)[table].values()]
    assert files - others == {entry.__module__.rpartition(".")[2] for entry in entries}
    assert others <= files


@pytest.mark.parametrize("folder", ["codecs", "layouts", "models"])
def test_plug_ins_go_by_the_name_in_their_table(folder: str) -> None:
    table: dict[str, Any] = vars(importlib.import_module(f"dsctl.{folder}"))[TABLES[folder][0]]
    assert {key: value.name for key, value in table.items()} == {key: key for key in table}


def test_each_library_stays_in_its_room() -> None:
    strays = [
        found
        for found in imports()
        if found.package not in ROOMS
        or ((rooms := ROOMS[found.package]) is not None and not any(within(found.module, room) for room in rooms))
    ]
    assert not strays


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def test_torch_is_loaded_late() -> None:
    assert {found.module for found in imports() if found.package == "torch" and found.at_load} <= LOADS_TORCH


def test_few_modules_are_loaded_within_functions() -> None:
    found: dict[str, set[str]] = {}
    for path in [*PACKAGE.glob("*.py"), *(PACKAGE / "cli").rglob("*.py"), *(PACKAGE / "show").rglob("*.py")]:
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        tree = ast.parse(path.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for node in {inner for function in functions for inner in ast.walk(function)}:
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "dsctl":
                names = [node.module] if node.module != "dsctl" else [f"dsctl.{alias.name}" for alias in node.names]
                found.setdefault(module, set()).update(str(name).removeprefix("dsctl.") for name in names)
    assert found == LATE


def test_declared_dependencies_are_those_that_are_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(text for extra in extras.keys() - {"dev"} for text in extras[extra])]
    declared, optional = (
        {text.partition(">")[0].strip() for text in texts} for texts in (project["dependencies"], wanted)
    )
    # `compression` is the standard library's later name of what `backports.zstd` brings.
    names = {"backports": "backports.zstd"}
    found = {names.get(found.package, found.package) for found in imports()} - {"compression"}
    assert declared <= found <= optional


def _packages(requirements: list[str]) -> set[str]:
    return {text.partition(">")[0].strip() for text in requirements}


def test_public_names_are_those_of_all() -> None:
    public = {
        name for name in dir(dsctl) if not name.startswith("_") and not isinstance(getattr(dsctl, name), ModuleType)
    }
    assert public - {"annotations"} == {name for name in dsctl.__all__ if not name.startswith("_")}
    assert all(hasattr(dsctl, name) for name in dsctl.__all__)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("architecture") / "tiny"
    run_dsctl("tiny", "v3.2", folder)
    return folder


LOOKING = (
    "--help",
    "--version",
    "convert --help",
    "models",
    "plan v3.2",
    "diff v3.1 v3.2",
    "inspect SRC",
    "inspect SRC --json",
    "diff SRC SRC",
    "verify SRC",
    "convert SRC DST --bf16 --dry-run",
)


@pytest.mark.parametrize("line", LOOKING)
def test_what_only_looks_never_loads_torch(line: str, checkpoint: Path, tmp_path: Path) -> None:
    places = {"SRC": str(checkpoint), "DST": str(tmp_path / "out")}
    words = [places.get(word, word) for word in line.split()]
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('LOADED', 'torch' in sys.modules, file=sys.stderr))\n"
        f"sys.argv = ['dsctl', *{words!r}]\n"
        "from dsctl.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "LOADED False" in done.stderr

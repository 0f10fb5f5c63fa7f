"""The recipes of docs/contributing.md, each followed once: toys are put into a copy of dsctl as the page says.

Files to write, tables and lines are read from the page. A page that is not exact puts a toy in the wrong place.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "contributing.md"
TOYS = ROOT / "tests" / "support" / "toys"
# Recipe -> the toy that it is followed with; a dialect has no file.
FILES = {
    "codec": "codec.py", "dialect": "", "model": "model.py", "layout": "layout.py", "release": "release.json",
    "verb": "verb.py",
}  # fmt: skip
# What the page writes in capitals.
WORDS = {
    "NAME": "toy", "CLASS": "Toy",
    "LOADERS": '"nobody"', "HARDWARE": '"any"', "LOSSLESS": '"itself"', "DECIBELS": "41.2",
    "PART": '"scale"', "OFF": '"weight"', "ON": '"factor"',
    "LINE": '"Count the layers of a release."',
}  # fmt: skip
# What each recipe needs in the package, besides its file: (table, the file that it is in).
LINES = {
    "codec": [("CODECS", "dsctl/codecs/__init__.py"), ("FORMATS", "dsctl/codecs/facts.py")],
    "dialect": [("DIALECTS", "dsctl/layouts/naming.py")],
    "model": [("MODELS", "dsctl/models/__init__.py")],
    "layout": [("LAYOUTS", "dsctl/layouts/__init__.py")],
    "release": [],
    "verb": [("VERBS", "dsctl/cli/app.py")],
}
# Run in this order in one process. The toys stand together: the release is of the model, whose matrices are stored by
# the codec in the dialect.
COMMANDS = (
    "tiny toy source",
    "inspect source --json",
    "verify source --deep --json",
    "convert source plain --bf16 --workers 1",
    "convert plain stored --to toy --workers 1",
    "convert plain back --to published --workers 1",
    "convert plain nowhere --recipe half.toml --dry-run",
    "compare plain stored --json",
    "shard source ranks --tp 2 --layout toy --workers 1",
    "merge ranks whole --workers 1",
    "formats --json",
    "models --json",
    "models",
    "diff toy v3.2 --json",
    "toy v3.2",
    "toy toy --json",
)
HALF = '[[rule]]\nmatch = "*.up.*"\nformat = "toy"\n'
RUNNER = """
import json, sys
from tests.support.command import call
print(json.dumps({line: call(*line.split()) for line in sys.argv[1:]}))
"""


class Added(NamedTuple):
    """A line that a recipe adds: the line, the table, and the table's file."""

    line: str
    table: str
    file: str


class Told(NamedTuple):
    """What a finished command said."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.stdout)


def filled(text: str) -> str:
    """Text of the page with the toy's words in place of those in capitals."""
    return re.sub(r"\b[A-Z]{2,}\b", lambda found: WORDS.get(found[0], found[0]), text)


def recipe(name: str) -> str:
    """A recipe's text, in one line."""
    found = re.search(rf"^## Add a {name}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{PAGE.name} has no recipe for a {name}"
    return " ".join(found[1].split())


def written(name: str) -> list[str]:
    """The files that a recipe says to write in the package."""
    return [filled(file) for file in re.findall(r"\d\. Write `(dsctl/[^`]+)`", recipe(name))]


def added(name: str) -> list[Added]:
    """The lines that a recipe says to add to tables."""
    found = re.findall(r"\d\. Add `([^`]+)` to `([A-Z]+)` in `(dsctl/[^`]+)`", recipe(name))
    return [Added(filled(line), table, file) for line, table, file in found]


def imported(name: str) -> list[str]:
    """The imports that a recipe says to add to its first table's file."""
    return [filled(line) for line in re.findall(r"import it: `([^`]+)`", recipe(name))]


def suites(name: str) -> list[str]:
    """The suites that test a new entry automatically, as a recipe says."""
    steps = re.split(r" (?=\d+\. )", recipe(name))
    said = [step.partition("automatically")[0] for step in steps if "automatically" in step]
    return [file for step in said for file in re.findall(r"`(tests/[^`]+\.py)`", step)]


def put(copy: Path, one: Added, imports: list[str]) -> None:
    """Add a line at the top of a table, and imports before those of the package."""
    file = copy / one.file
    text, times = re.subn(
        rf"^{one.table}\b.*\{{$", lambda found: f"{found[0]}\n    {one.line}", file.read_text(), flags=re.MULTILINE
    )
    assert times == 1, f"{one.file} has no {one.table}"
    for line in imports:
        text = text.replace("\nfrom dsctl.", f"\n{line}\nfrom dsctl.", 1)
    file.write_text(text)


def follow(copy: Path, name: str) -> None:
    for file in written(name):
        assert not (copy / file).exists()
        shutil.copy(TOYS / FILES[name], copy / file)
    imports = imported(name)
    for one in added(name):
        put(copy, one, imports)
        imports = []


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dsctl and its tests, with every toy."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("dsctl", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in FILES:
        follow(folder, name)
    return folder


def python(copy: Path, *words: Any, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python with the copy in place of this package."""
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command, cwd=folder or copy, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "half.toml").write_text(HALF)
    return folder


@pytest.fixture(scope="module")
def told(copy: Path, place: Path) -> dict[str, Told]:
    """What the copy said to every command."""
    done = python(copy, "-c", RUNNER, *COMMANDS, folder=place)
    assert done.returncode == 0, done.stderr
    return {line: Told(*said) for line, said in json.loads(done.stdout).items()}


def tensors(folder: Path) -> dict[str, str]:
    """The dtypes of a folder's tensors by name."""
    found: dict[str, str] = {}
    for file in sorted(folder.rglob("*.safetensors")):
        raw = file.read_bytes()
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        found |= {name: one["dtype"] for name, one in header.items() if name != "__metadata__"}
    return found


def weights(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_is_one_file_and_its_tables(name: str) -> None:
    assert len(written(name)) == bool(FILES[name])
    assert [(one.table, one.file) for one in added(name)] == LINES[name]
    assert bool(imported(name)) == (name in ("codec", "model", "layout"))


def test_every_recipe_has_a_toy_and_every_file_that_is_named_is_there() -> None:
    text = PAGE.read_text()
    assert set(re.findall(r"^## Add a (\w+)$", text, re.MULTILINE)) == set(FILES)
    named = {file for file in re.findall(r"`((?:dsctl|docs|tests)/[\w/.]+)`", text) if "NAME" not in file}
    assert named and [file for file in named if not (ROOT / file).exists()] == []
    modules = {f"{module.replace('.', '/')}.py" for module in re.findall(r"`python -m (tests[\w.]+)`", text)}
    assert modules and [file for file in modules if not (ROOT / file).exists()] == []


@pytest.mark.parametrize(
    ("table", "file"), re.findall(r"`([A-Z_]+)` in `((?:dsctl|tests)/[^`]+)`", " ".join(PAGE.read_text().split()))
)
def test_every_table_is_in_the_file_that_is_named(table: str, file: str) -> None:
    assert re.search(rf"^{table}\b.* = ", (ROOT / file).read_text(), re.MULTILINE)


def test_the_summary_in_contributing_says_the_same() -> None:
    table = dict(re.findall(r"^\| an? (\w+) \| (.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE))
    assert list(table) == list(FILES)
    for name, told in table.items():
        lines = [pair for one in LINES[name] for pair in one]
        files = [file.replace("toy", "NAME") for file in written(name)]
        assert re.findall(r"`([^`]+)`", told) == [*files, *lines]


def test_a_codec_is_converted_to_and_back(told: dict[str, Told], place: Path) -> None:
    assert told["convert plain stored --to toy --workers 1"].code == 0
    stored = tensors(place / "stored")
    assert stored["toy.0.down.weight"] == "I8" and stored["toy.0.down.weight_scale_inv"] == "F32"
    config = json.loads((place / "stored" / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "toy"}
    # Integers times a scale, once they have been decoded, are stored as the same integers again.
    assert told["compare plain stored --json"].json["total"]["identical"]
    assert "toy" in [one["name"] for one in told["formats --json"].json["formats"]]


def test_a_codec_whose_config_names_no_modules_is_refused_beside_unquantized_ones(told: dict[str, Told]) -> None:
    done = told["convert plain nowhere --recipe half.toml --dry-run"]
    assert done.code == 30 and "quantization_config of toy cannot leave out toy.0.down" in done.stderr


def test_a_dialect_names_a_scale_differently(told: dict[str, Told], place: Path) -> None:
    assert tensors(place / "source")["toy.0.down.factor"] == "F32"
    assert tensors(place / "plain").keys() == {
        name for name in tensors(place / "source") if not name.endswith(".factor")
    }
    assert told["convert plain back --to published --workers 1"].code == 0
    assert weights(place / "back") == weights(place / "source")


def test_a_model_is_recognised(told: dict[str, Told]) -> None:
    found = told["inspect source --json"].json
    assert found["architecture"] == "toy" and found["formats"] == ["BF16", "toy"] and not found["faults"]
    assert {one["role"]: one["parameters"] for one in found["roles"]}["mixer"] == 6
    assert told["verify source --deep --json"].json["findings"] == []


def test_a_layout_shards_and_merges(told: dict[str, Told], place: Path) -> None:
    assert told["shard source ranks --tp 2 --layout toy --workers 1"].code == 0
    assert {path.name for path in (place / "ranks").glob("rank-*")} == {"rank-00000", "rank-00001"}
    assert tensors(place / "ranks").keys() == {f"mine.{name}" for name in tensors(place / "source")}
    assert told["merge ranks whole --workers 1"].code == 0
    assert weights(place / "whole") == weights(place / "source")


def test_a_release_is_listed_and_compared(told: dict[str, Told]) -> None:
    row = next(line for line in told["models"].stdout.splitlines() if line.split()[:1] == ["toy"])
    assert re.search(r"2026-01-01 .* 4 +not known +toy ", row), "its config says nothing of positions"
    (release,) = [one for one in told["models --json"].json if one["alias"] == ["toy"]]
    assert release["repository"] == "nobody/Toy" and release["layers"] == 4
    found = told["diff toy v3.2 --json"].json
    assert found["verdict"] == "architecture" and (found["a"]["name"], found["b"]["name"]) == ("Toy", "DeepSeek-V3.2")


def test_a_verb_is_in_help_and_runs(copy: Path, told: dict[str, Told]) -> None:
    listed = python(copy, "-m", "dsctl", "--help")
    assert listed.returncode == 0 and re.search(r"toy +Count the layers of a release\.", listed.stdout)
    assert "Examples" in python(copy, "-m", "dsctl", "toy", "--help").stdout
    assert told["toy v3.2"].stdout == "DeepSeek-V3.2: 61 layers\n"
    assert told["toy toy --json"].json == {"release": "Toy", "layers": 4}


def test_the_suites_take_the_toys_up_and_the_rules_hold(copy: Path, tmp_path: Path) -> None:
    """Tables are whole, names are those of the tables, imports go down; commands that only look were run above."""
    named = {file for name in FILES for file in suites(name)}
    rules = "tests/test_architecture.py"
    assert len(named) == 6
    chosen = "toy or (test_architecture and not looks and not dependencies)"
    words = ("-q", "-rp", "-n0", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'inner'}", "-k", chosen)
    done = python(copy, "-m", "pytest", *words, *sorted(named), rules)
    assert done.returncode == 0, done.stdout
    passed = re.findall(r"^PASSED (tests/[^:]+)::(\S+)", done.stdout, re.MULTILINE)
    assert {file for file, test in passed if "toy" in test} == named
    assert {test for file, test in passed if file == rules} >= {
        *(f"test_every_plug_in_is_in_its_table[{folder}]" for folder in ("codecs", "layouts", "models")),
        *(f"test_plug_ins_go_by_the_name_in_their_table[{folder}]" for folder in ("codecs", "layouts", "models")),
        "test_imports_go_down_only", "test_each_library_stays_in_its_room", "test_torch_is_loaded_late",
    }  # fmt: skip

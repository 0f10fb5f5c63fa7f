"""What files, names and arguments say is printed as text: it steers no terminal, and nothing in it is markup."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.flows.test_hostile import NORM, SIZES, config, entry, header, index, named, quantization, rewritten
from tests.support.checkpoints import tiny
from tests.support.command import Done, call, run

# Colours, titles and positions by ESC and by C1, marks that turn the direction, ends of lines, half a character.
NASTY = "n\x1b[31m\x1b]0;title\x07\x9b2J\x7f\x08\r\v\u200e\u200f\u202a\u202e\u2066\u2069\u2028\u2029\ud800\nerror: x"
# What is markup to rich, what would end some, and names of emojis.
MARKUP = "m[/][bold]y[/bold][/nope][link=x]:smile:[[a]]"
# A path has no half characters but those that stand for bytes, and a slash parts it.
PATHS = {"nasty": NASTY.replace("\ud800", ""), "markup": MARKUP.replace("/", "")}


def nested(text: str) -> Callable[[dict[str, Any]], object]:
    """Hostile keys and values at every depth of `config.json`, beside those that dsctl looks at."""
    return lambda value: value.update(
        {text: text, "deep": {text: [text, {text: text}]}, "torch_dtype": text, "transformers_version": text}
    )


def renamed(text: str) -> Callable[[dict[str, tuple[str, list[int], bytes]]], object]:
    def change(tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
        tensors[f"model.layers.0.{text}.weight"] = tensors.pop(next(iter(tensors)))

    return change


def side(text: str) -> Callable[[Path], None]:
    """A signature and other files of JSON that say it everywhere."""

    def mutate(folder: Path) -> None:
        said = {"dsctl": text, "source": text, "notes": [text], "request": {text: text}, "audit": {text: text}}
        (folder / "dsctl.json").write_text(json.dumps(said | {"files": {text: {"size": 1, "sha256": text}}}))
        (folder / "generation_config.json").write_text(json.dumps({text: text}))

    return mutate


def metadata(text: str) -> Callable[[Path], None]:
    return header(lambda entries: entries.update(__metadata__={text: text, "format": text}))


PLACES: dict[str, Callable[[str], Callable[[Path], None]]] = {
    "a tensor more": named,
    "a tensor's name": lambda text: rewritten(renamed(text)),
    "dtype": lambda text: entry(dtype=text),
    "metadata": metadata,
    "the index's file": lambda text: index(lambda names: names.update({NORM: f"{text}.safetensors"})),
    "the index's tensor": lambda text: index(lambda names: names.update({text: names[NORM]})),
    "config": lambda text: config(nested(text)),
    "model_type": lambda text: config(lambda value: value.update(model_type=text, architectures=[text])),
    "a size": lambda text: config(lambda value: value.update(num_hidden_layers=text)),
    "quant_method": lambda text: quantization(quant_method=text),
    "quantization": lambda text: quantization(**{text: text, "fmt": text, "modules_to_not_convert": [text]}),
    "signature": side,
}


def verbs(source: Any, other: Any, out: Any) -> Iterator[list[Any]]:
    """Every verb that reads a checkpoint, in each of its modes; `out` does not exist."""
    for more in ([], ["--json"], ["--tensors"], ["--tensors", "--fold"], ["--tree"], ["--files"]):
        yield ["inspect", source, *more]
    yield ["inspect", source, "--html", f"{out}.html"]
    for more in ([], ["--json"], ["--all"], ["--deep"], ["--against", "v3.2"], ["--against", other]):
        yield ["verify", source, *more]
    yield ["verify", source, "--fix", "--dry-run"]
    for more in ([], ["--json"], ["--fail-under", "300"], ["--html", f"{out}.html"]):
        yield ["compare", source, other, *more]
    for more in ([], ["--json"], ["--markdown", "--tensors"], ["--html", f"{out}.html"]):
        yield ["diff", other, source, *more]
    yield ["plan", source]
    yield ["plan", source, "--json"]
    yield ["convert", source, out, "--bf16", "--dry-run", "--allow-extra", "--allow-missing"]
    yield ["convert", source, out, "--bf16", "--dry-run", "--json", "--allow-extra", "--allow-missing"]
    yield ["convert", source, out, "--bf16", "--no-such-option"]
    yield ["convert", source, out, "--bf16"]
    yield ["shard", source, out, "--tp", "2", "--dry-run"]
    yield ["merge", source, out, "--dry-run"]
    yield ["slice", source, out, "--layers", "0", "--dry-run"]


def printed(done: Done, source: Any) -> None:
    """Nothing but printable characters and ends of lines; one error line of its own at most, and that a known one."""
    for stream in (done.stdout, done.stderr):
        assert all(c.isprintable() or c == "\n" for c in stream), repr(stream[:2000])
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr, done.stderr
    assert sum(line.startswith("error: ") for line in (done.stdout + done.stderr).splitlines()) == bool(
        done.stderr.startswith("error: ") or "\nerror: " in done.stderr
    )


def as_json(done: Done, arguments: list[Any]) -> None:
    if "--json" in arguments and done.stdout:
        json.loads(done.stdout)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "v3.2", **SIZES)


@pytest.mark.parametrize("text", [NASTY, MARKUP], ids=["nasty", "markup"])
@pytest.mark.parametrize("place", PLACES)
def test_no_verb_prints_what_a_file_says_as_anything_but_text(
    place: str, text: str, source: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "source"))
    PLACES[place](text)(copy)
    said = False
    for arguments in verbs(copy, source, tmp_path / "out"):
        done = call(*arguments)
        printed(done, copy)
        as_json(done, arguments)
        page = tmp_path / "out.html"
        if page.exists():
            assert all(c.isprintable() or c == "\n" for c in page.read_text())
            page.unlink()
        said |= text == MARKUP and text in (done.stdout + done.stderr).replace("\\", "")
    assert said or text == NASTY or place in ("metadata", "signature"), "nothing shows the name at all"


@pytest.mark.parametrize("name", PATHS)
def test_folders_of_any_name_are_read_and_written_and_named_as_they_are(
    name: str, source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / PATHS[name]
    shutil.copytree(source, folder)
    shown = PATHS[name] if name == "markup" else "n\\x1b[31m\\x1b]0;title\\x07\\x9b2J\\x7f"
    done = Done(0, "", "")
    for number, arguments in enumerate(verbs(folder, source, tmp_path / f"out-{PATHS[name]}")):
        done = call(*arguments)
        printed(done, folder)
        as_json(done, arguments)
        assert shown in (done.stdout + done.stderr) or number > 0 or "--html" in arguments
    out = tmp_path / f"out {PATHS[name]}"
    for verb in (["convert", folder, out, "--bf16"], ["tiny", "v3.2", tmp_path / f"made {PATHS[name]}", "--layers", 2]):
        done = call(*verb)
        printed(done, folder)
        assert done.returncode == 0 and f" {shown}" in done.stdout, done
    done = call("doctor", folder, "--no-hub")
    printed(done, folder)
    assert done.returncode == 0 and shown in "".join(done.stdout.split())


def test_a_folder_whose_name_is_no_utf8_is_read_and_written(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "s\udcff"))
    for arguments in verbs(folder, source, tmp_path / "o\udcff"):
        done = call(*arguments)
        printed(done, folder)
        as_json(done, arguments)
    assert call("verify", tmp_path / "o\udcff", "--deep").returncode == 0


@pytest.mark.parametrize("text", [*PATHS.values(), "x[/]", "[bold]y"])
def test_arguments_of_every_verb_are_printed_as_they_are(
    text: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dsctl.stores.hub_faults.FIRST_WAIT", 0.0)
    # No name of a path, which each of these would be in turn.
    lines: list[list[Any]] = [
        [verb, *given]
        for verb in ("inspect", "verify", "compare", "diff", "convert", "shard", "merge", "slice", "plan", "download")
        for given in ([text], [text, text], [text, text, text], [text, text, "--bf16"], [source, text, f"--{text}"])
    ]
    lines += [[verb, text] for verb in ("models", "formats", "doctor", "tiny", text)]
    options = {
        "inspect": ["--html"], "verify": ["--against", "--ignore"], "diff": ["--only", "--html"],
        "plan": ["--to", "--gpu", "--recipe", "--tp", "--context"], "download": ["--layers", "--experts", "--include"],
        "convert": ["--to", "--recipe", "--scale-fmt", "--shard-size", "--only", "--workers", "--engine", "--device"],
        "shard": ["--layout", "--tp", "--rank", "--expert-map"], "slice": ["--layers", "--experts", "--to"],
        "compare": ["--worst", "--fail-under", "--only"], "merge": ["--layout"], "tiny": ["--size", "--layers"],
    }  # fmt: skip
    for verb, names in options.items():
        others = [tmp_path / "out"] if verb in ("convert", "shard", "slice", "merge") else []
        others = [source] if verb in ("compare", "diff") else others
        first = "v3.2" if verb in ("tiny", "download") else source
        lines += [[verb, first, *others, name, text, *(["--bf16"] * (verb == "convert"))] for name in names]
    for arguments in lines:
        printed(call(*arguments), source)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_streams_of_any_encoding_are_written_to(encoding: str, source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "sourcé-源"))
    named("nämé-源-\U0001f600")(copy)
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    for arguments in (
        ["inspect", copy, "--tensors"],
        ["inspect", copy, "--tree"],
        ["diff", "v3", "v3.2"],
        ["verify", copy],
    ):
        command = [sys.executable, "-m", "dsctl", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False)
        assert b"internal error" not in done.stderr and b"Traceback" not in done.stderr, done.stderr
        assert done.returncode in (0, 50), done.stderr
        (done.stdout + done.stderr).decode(encoding)
    done = subprocess.run(
        [sys.executable, "-m", "dsctl", "inspect", str(copy), "--tensors", "--json"],
        capture_output=True, env=environment, timeout=60, check=False,
    )  # fmt: skip
    listed = json.loads(done.stdout.decode(encoding))["tensor_list"]
    assert "nämé-源-\U0001f600" in [one["name"] for one in listed]


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_streams_may_be_closed(closed: int) -> None:
    command = f"exec {shlex.quote(sys.executable)} -m dsctl diff v3 v3.2 {closed}>&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0 and not done.stderr and bool(done.stdout) == (closed != 1), done


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(
    "words",
    [
        ["diff", "v3", "v3.2"],
        ["diff", "v3.2", "v4-pro", "--markdown"],
        ["inspect", "v3.2", "--tree"],
        ["plan", "v3.2"],
        ["formats"],
        ["--help"],
        ["convert", "--help"],
    ],
    ids=" ".join,
)
def test_an_ascii_terminal_gets_stand_ins(words: list[str], width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    done = call(*words, encoding="ascii")
    assert done.returncode == 0 and done.stdout.isascii() and "\\u" not in done.stdout, done.stdout
    assert not done.stderr
    if words[:1] == ["diff"]:
        assert " -> " in done.stdout


def test_what_has_no_stand_in_is_spelled_out(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C", "COLUMNS": "80"}
    done = run("inspect", tmp_path / "源→", env=environment)
    assert done.returncode == 10 and "\\u6e90->" in done.stderr, done.stderr


@pytest.mark.parametrize("width", [40, 60, 80, 100])
@pytest.mark.parametrize(
    "words",
    [
        ["models"], ["formats"], ["inspect", "v3.2"], ["plan", "v3.2"], ["diff", "v3", "v3.2"],
        ["diff", "v2", "v4-pro"], ["inspect", "SRC", "--tensors"], ["inspect", "SRC", "--files"],
        ["compare", "SRC", "SRC"], ["verify", "SRC"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_narrow_terminal_loses_no_column_silently(
    words: list[str], width: int, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [source if word == "SRC" else word for word in words]
    monkeypatch.setenv("COLUMNS", "400")
    wide = call(*arguments).stdout
    monkeypatch.setenv("COLUMNS", str(width))
    narrow = call(*arguments).stdout
    assert "Not shown at this width" not in wide
    for title in titles(wide):
        assert title in " ".join(narrow.split()), title


def titles(text: str) -> set[str]:
    """The titles of columns: those of the lines after headings and empty lines, two spaces apart."""
    lines = text.splitlines()
    heads = [
        line
        for before, line in pairwise(["", *lines])
        if (not before or not before.startswith(" ")) and line[:2] == "  "
    ]
    return {title for line in heads for title in re.split(r"\s{2,}", line.strip()) if title}


def test_a_tree_is_wrapped_and_not_cropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    wide = call("inspect", "v3.2", "--tree").stdout
    for width in ("60", "30"):
        monkeypatch.setenv("COLUMNS", width)
        narrow = "".join(re.sub(r"[│├└─]", " ", call("inspect", "v3.2", "--tree").stdout).split())
        assert all(word in narrow for word in re.sub(r"[│├└─█]", " ", wide).split())


def test_a_traceback_that_was_asked_for_steers_no_terminal_either(tmp_path: Path) -> None:
    done = run("inspect", tmp_path / PATHS["nasty"], "--debug")
    assert done.returncode == 10 and done.stderr.startswith("Traceback")
    assert all(c.isprintable() or c == "\n" for c in done.stderr), repr(done.stderr)


def test_json_escapes_what_steers_a_terminal_and_says_the_same(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "source"))
    name = "n\x1b\x7f\x9b\u202e\u2028\U000e0001é源"
    named(name)(copy)
    done = call("inspect", copy, "--tensors", "--json")
    assert "\\u001b\\u007f\\u009b\\u202e\\u2028\\udb40\\udc01é源" in done.stdout
    assert name in [one["name"] for one in json.loads(done.stdout)["tensor_list"]]


def test_nothing_but_the_mouth_reads_markup() -> None:
    """Where no markup is read, none can be injected."""
    for path in sorted(Path("dsctl").rglob("*.py")):
        words = path.read_text()
        assert "rich.markup" not in words and "from_markup" not in words and "markup=True" not in words, path

"""The wheel and the sdist hold what they must, and dsctl works as people install it: with pip, uv and uvx."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest

import dsctl
from tests.support.command import dsctl as run_dsctl
from tests.tools.reference import commands

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What an installation without extras may take, with the first runs of every verb that only looks.
SECONDS, NBYTES = 60, 120e6
# SRC is a small checkpoint, OUT a folder that is not there.
LOOKING = (
    "--help",
    "--version",
    "models",
    "formats",
    "inspect v3.2",
    "inspect SRC --json",
    "diff v3 v3.2",
    "diff SRC SRC",
    "plan v3.2 --tp 8",
    "verify SRC",
    "verify SRC --deep",
    "verify SRC --fix --dry-run",
    "convert v3.2 OUT --bf16 --dry-run",
    "convert SRC OUT --bf16 --dry-run",
    "shard v3.2 OUT --tp 8 --dry-run",
    "merge SRC OUT --dry-run",
    "slice SRC OUT --layers 0 --dry-run",
    "graft SRC OUT --from SRC mtp --dry-run",
    "card MADE",
    "delta make SRC SRC DELTA",
    "delta verify DELTA --base SRC",
    "delta apply SRC DELTA RESULT",
    "delta fold DELTA DELTA OUT --help",
    "upload --help",
    "doctor . --no-hub",
)
# The work that needs torch, as the error names it.
NEEDING = {
    "convert SRC OUT --bf16": "writing weights",
    "convert SRC OUT --bf16 --workers 2": "writing weights",
    "shard SRC OUT --tp 2": "writing weights",
    "merge SRC OUT": "writing weights",
    "slice SRC OUT --layers 0": "writing weights",
    "graft SRC OUT --from SRC mtp": "writing weights",
    "download v3.2 OUT --layers 0": "writing weights",
    "tiny v3.2 OUT": "making weights",
    "compare SRC SRC": "comparing values",
    "verify SRC --against SRC": "comparing values",
}
# What pip and uv print if a package index cannot be reached.
UNREACHABLE = re.compile(
    "NewConnectionError|ConnectTimeoutError|ProxyError|NameResolutionError|dns error|[Cc]ould not connect"
    "|client error \\(Connect\\)"
)
LACKING = """
import sys, dsctl
from dsctl.core.errors import DsctlError
try:
    dsctl.open("{source}").to("bf16").run("{target}")
except DsctlError as error:
    print(type(error).__name__, error.exit_code, error.hint)
assert "torch" not in sys.modules
"""


def bare(**more: str) -> dict[str, str]:
    """This environment without the path of the checkout, and with bytecode, as users have it."""
    dropped = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "COLUMNS")
    return {key: value for key, value in os.environ.items() if key not in dropped} | more


def run(*words: object, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [str(word) for word in words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)


def install(*words: object, cwd: Path, env: dict[str, str]) -> None:
    """Run an installer; the test is skipped if it cannot reach a package index, which nothing here can stand in for."""
    done = run(*words, cwd=cwd, env=env)
    if done.returncode and UNREACHABLE.search(done.stderr):
        pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr


def build(source: Path, kind: str, folder: Path) -> Path:
    """The archive that hatchling builds; it is in the environment, so that nothing is fetched."""
    done = run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", folder, cwd=source, env=bare())
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


def files(folder: Path) -> set[str]:
    found = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.is_file()}
    return {name for name in found if "__pycache__" not in name}


def test_the_wheel_is_the_package_and_the_sdist_builds_the_same(tmp_path: Path) -> None:
    wheel, sdist = build(ROOT, "wheel", tmp_path / "wheel"), build(ROOT, "sdist", tmp_path / "sdist")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = message_from_bytes(archive.read(f"dsctl-{dsctl.__version__}.dist-info/METADATA"))
    held = {name for name in names if not name.startswith(f"dsctl-{dsctl.__version__}.dist-info/")}
    assert held == files(Path("dsctl"))
    assert {"dsctl/py.typed", "dsctl/releases/v3.2.json"} <= held
    for ending in ("plan/recipes/*.toml", "show/drawing/templates/*"):
        assert any(Path(name).match(f"dsctl/{ending}") for name in held), ending
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"dsctl-{dsctl.__version__}"
    # Everything that the tests read is there.
    assert all((unpacked / name).is_file() for name in files(Path("tests")) | files(Path("docs")))
    beside = ("README.md", "CHANGELOG.md", "LICENSE", "Dockerfile", ".dockerignore", ".ci/run", "dev.py", "mkdocs.yml")
    assert all((unpacked / name).is_file() for name in beside)
    assert build(unpacked, "wheel", tmp_path / "again").read_bytes() == wheel.read_bytes()
    assert metadata["Description-Content-Type"] == "text/markdown" and "# dsctl" in str(metadata.get_payload())
    assert metadata["License-Expression"] == "MIT" and metadata["Requires-Python"] == ">=3.11"
    needed = [text for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]
    assert len(needed) == len(PROJECT["dependencies"]) and not any(text.startswith("torch") for text in needed)


def called(line: str) -> str:
    """The words of a line that call a verb, or an action of one."""
    return " ".join(line.split()[: 2 if line.startswith("delta ") else 1])


def test_every_verb_is_tried_without_torch() -> None:
    assert {called(line) for line in (*LOOKING, *NEEDING)} >= set(commands())


def test_the_base_installs_small_and_does_all_that_only_looks(tmp_path: Path) -> None:
    source, out, home = tmp_path / "small", tmp_path / "out", tmp_path / "environment"
    run_dsctl("tiny", "v3.2", source)
    run_dsctl("convert", source, tmp_path / "made", "--layout", "published")
    wheel, env = build(ROOT, "wheel", tmp_path / "dist"), bare()

    def installed(line: str) -> subprocess.CompletedProcess[str]:
        places = {"SRC": str(source), "OUT": str(out), "MADE": "made", "DELTA": "delta", "RESULT": "result"}
        words = [places.get(word, word) for word in line.split()]
        return run(home / "bin" / "dsctl", *words, cwd=tmp_path, env=env)

    began = time.perf_counter()
    venv.create(home, symlinks=True)
    # As uv does, without bytecode of what never runs.
    pip = (sys.executable, "-m", "pip", "--python", home / "bin" / "python")
    install(*pip, "install", "--no-compile", wheel, cwd=tmp_path, env=env)
    for line in LOOKING:
        done = installed(line)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        assert "torch is not installed" in done.stdout if line == "doctor . --no-hub" else "error" not in done.stderr
    assert time.perf_counter() - began < SECONDS
    assert sum(path.stat().st_size for path in home.rglob("*") if path.is_file() and not path.is_symlink()) < NBYTES
    for line, what in NEEDING.items():
        done = installed(line)
        assert done.returncode == 30, line
        error, hint = f"error: {what} needs torch, which is not installed", "hint: pip install 'dsctl[torch]'"
        assert (done.stdout, done.stderr.split("\n")) == ("", [error, "", hint, ""]), line
    done = installed("diff v3 v3.2 --html page.html")
    assert done.returncode == 2 and "pip install 'dsctl[report]'" in done.stderr
    done = run(home / "bin" / "python", "-c", LACKING.format(source=source, target=out), cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout) == (0, "PlanError 30 pip install 'dsctl[torch]'\n"), done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"dist", "environment", "made", "small", "delta", "result"}


def test_uv_installs_it_as_a_tool_and_its_hint_adds_an_extra(tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    env = bare(
        UV_TOOL_DIR=str(tmp_path / "tools"),
        UV_TOOL_BIN_DIR=str(tmp_path / "bin"),
        UV_PYTHON=sys.executable,
        UV_NO_PROGRESS="1",
        PATH=os.pathsep.join((str(tmp_path / "bin"), str(uv.parent), os.environ["PATH"])),
    )
    install(uv, "tool", "install", ROOT, cwd=tmp_path, env=env)
    wanted = (tmp_path / "bin" / "dsctl", "diff", "v3", "v3.2", "--html", "page.html")
    done = run(*wanted, cwd=tmp_path, env=env)
    (hint,) = re.findall("^hint: (.*)$", done.stderr, re.MULTILINE)
    assert hint == f"uv tool install 'dsctl[report] @ {ROOT.as_uri()}'"
    install(*shlex.split(hint), cwd=tmp_path, env=env)
    done = run(*wanted, cwd=tmp_path, env=env)
    assert done.returncode == 0 and (tmp_path / "page.html").is_file(), done.stderr
    once = run(uv, "tool", "run", "--from", ROOT, "dsctl", "diff", "v3", "v3.2", cwd=tmp_path, env=env)
    assert once.returncode == 0 and once.stdout == run_dsctl("diff", "v3", "v3.2"), once.stderr
    once = run(uv, "tool", "run", "--isolated", "--from", ROOT, "dsctl", *wanted[1:], cwd=tmp_path, env=env)
    hint = f"uvx --from 'dsctl[report] @ {ROOT.as_uri()}' dsctl ..."
    assert once.returncode == 2 and f"hint: {hint}\n" in once.stderr, once.stderr


def test_the_image_is_built_from_what_is_there(tmp_path: Path) -> None:
    """Docker itself is not needed: every file that it copies exists, and every extra that it installs."""
    text = (ROOT / "Dockerfile").read_text()
    (named,) = re.findall(r'"/tmp/dsctl\[([\w,]+)\]"', text)
    assert set(named.split(",")) <= PROJECT["optional-dependencies"].keys()
    kept = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"]
    # The files that docker copies build the same wheel.
    image = tmp_path / "image"
    image.mkdir()
    for name in kept:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, image / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, image)
    wheels = build(ROOT, "wheel", tmp_path / "ours"), build(image, "wheel", tmp_path / "its")
    assert wheels[0].read_bytes() == wheels[1].read_bytes()
    assert 'ENTRYPOINT ["dsctl"]' in text and "USER dsctl" in text

"""Gates for CI: the recipes of docs/guides/ci.md on right and wrong checkpoints, annotations, action, pre-commit."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from dsctl.core.header import TensorSpec, build, parse
from tests.flows.planted import FIRST, INDEX, NORM, PLANTED, SCALE, Folder, drop
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl
from tests.support.full_size import hollow

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "guides" / "ci.md"
SMALL = {"layers": 2, "experts": 4, "hidden": 256, "heads": 2, "vocab": 256, "moe_intermediate": 128}


class Recipe(NamedTuple):
    """A row of the page's table: the command, and the exit code that it has on a wrong checkpoint."""

    question: str
    command: str
    code: int

    def run(self) -> int:
        """Its exit code in the current folder; whatever is not dsctl runs in a shell."""
        words = shlex.split(self.command)
        if words[0] == "dsctl":
            return call(*words[1:]).returncode
        return subprocess.run(["bash", "-c", self.command], check=False).returncode


def recipes() -> list[Recipe]:
    found = re.findall(r"^\| ([^|]+\?) \| `([^|]+)` \| (\d+) \|$", PAGE.read_text(), re.MULTILINE)
    return [Recipe(question, command, int(code)) for question, command, code in found]


def decoded(folder: Path, source: Path) -> Path:
    """A full-size FP8 checkpoint without weights, as BF16."""
    folder.mkdir()
    for path in source.glob("*.safetensors"):
        header = parse(read_head_of(path), path.name, None)
        specs = {
            name: TensorSpec("BF16", spec.shape) if spec.dtype == "F8_E4M3" else spec
            for name, spec in zip(header.names, header.specs, strict=True)
            if not name.endswith(SCALE)
        }
        text, _ = build(specs)
        with (folder / path.name).open("wb") as file:
            file.write(text)
            file.truncate(len(text) + sum(spec.nbytes for spec in specs.values()))
    index = json.loads((source / INDEX).read_text())["weight_map"]
    weights = {name: file for name, file in index.items() if not name.endswith(SCALE)}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    config = json.loads((source / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def read_head_of(path: Path) -> bytes:
    """The JSON of a file's header."""
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints by name, each made once: small ones, what dsctl made from one, and full-size ones without weights."""
    folder = tmp_path_factory.mktemp("gates")

    @cache
    def make(name: str) -> Path:
        if name == "bf16":
            dsctl("convert", make("small"), folder / name, "--bf16", "--quiet")
            return folder / name
        if name == "full":
            return hollow(folder / name, "v3.2")
        if name == "full bf16":
            return decoded(folder / name, make("full"))
        return tiny(tmp_path_factory, "v3.2", **SMALL, seed={"small": 0, "seeded": 7}[name])

    return make


def truncated(folder: Path) -> None:
    PLANTED["a truncated shard"].plant(Folder(folder))


def flipped(folder: Path) -> None:
    PLANTED["one bit flipped"].plant(Folder(folder))


def unnamed(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def without_norm(folder: Path) -> None:
    drop(Folder(folder), NORM)


def stranger(folder: Path) -> None:
    Folder(folder).config(lambda config: config.update(model_type="lantern", architectures=[]))


def older(folder: Path) -> None:
    audit = json.loads((folder / "dsctl.json").read_text())
    (folder / "dsctl.json").write_text(json.dumps(audit | {"dsctl": "0.0.1"}, indent=1))


# By question: the right checkpoint, and the wrong one or what makes the right one wrong.
WRONG: dict[str, tuple[str, str | Callable[[Path], None]]] = {
    "Is it complete?": ("small", truncated),
    "Does dsctl know its architecture, so that it finds a missing layer?": ("small", stranger),
    "Is every byte as dsctl wrote it, and every value plausible?": ("bf16", flipped),
    "Does it have the reference's config, tokenizer and other files?": ("small", unnamed),
    "Does it have the release's parameters?": ("full", "small"),
    "Does it have the reference's parameters?": ("small", without_norm),
    "Is it stored in the same format, such as FP8?": ("small", "bf16"),
    "Do its values match, with at least 25 dB?": ("bf16", "seeded"),
    "Does it fit on eight H200?": ("full", "full bf16"),
    "Did this version of dsctl write it?": ("bf16", older),
}


def test_every_recipe_has_a_right_and_a_wrong_checkpoint() -> None:
    assert [recipe.question for recipe in recipes()] == list(WRONG)


@pytest.mark.parametrize("recipe", list(recipes()), ids=lambda recipe: recipe.question)
def test_a_recipe_ends_in_its_exit_code(
    recipe: Recipe, made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    right, wrong = WRONG[recipe.question]
    Path("reference").symlink_to(made("small"))
    Path("checkpoint").symlink_to(made(right))
    assert recipe.run() == 0
    Path("checkpoint").unlink()
    if isinstance(wrong, str):
        Path("checkpoint").symlink_to(made(wrong))
    else:
        wrong(Path(shutil.copytree(made(right), "checkpoint")))
    assert recipe.run() == recipe.code


def annotated(folder: Path, *options: str) -> list[str]:
    """The workflow commands that verify prints."""
    return [line for line in call("verify", folder, "--annotate", *options).stdout.splitlines() if line[:2] == "::"]


@pytest.fixture
def copy(made: Callable[[str], Path], tmp_path: Path) -> Folder:
    return Folder(Path(shutil.copytree(made("small"), tmp_path / "copy")))


def test_annotations_name_the_file_the_code_and_the_problem(copy: Folder) -> None:
    assert annotated(copy.path) == []
    truncated(copy.path)
    copy.config(lambda config: config.update(torch_dtype="float16"))
    (copy.path / "tokenizer.json").unlink()
    copy.index(lambda index: index["metadata"].update(total_size=7))
    found = annotated(copy.path)
    assert found[0].startswith(f"::error file={copy.path / FIRST},title=wrong-size::{FIRST}: file is truncated")
    assert found[1].startswith("::warning title=no-tokenizer::")
    assert found[2].startswith(f"::warning file={copy.path / 'config.json'},title=torch-dtype::")
    assert len(found) == 3
    assert annotated(copy.path, "--ignore", "wrong-size") == found[1:]
    assert call("verify", copy.path, "--annotate", "--quiet").stdout.splitlines() == found


def test_a_note_is_a_notice(copy: Folder) -> None:
    copy.index(lambda index: index["metadata"].update(total_size=7))
    assert [line.partition(" ")[0] for line in annotated(copy.path)] == ["::notice"]


def test_a_name_cannot_end_an_annotation_or_begin_another(copy: Folder) -> None:
    name = "x%0A::warning::\n::stop-commands::y,file=a:b"
    shutil.copyfile(copy.first(), copy.path / "a:b,c%.safetensors")
    copy.reheader(copy.first(), lambda header: header.update({name: header.pop(NORM)}))
    found = annotated(copy.path)
    stray = [line for line in found if "stray-file" in line]
    assert stray[0].startswith(f"::warning file={copy.path}/a%3Ab%2Cc%25.safetensors,title=stray-file::a:b,c%25.safet")
    assert all(re.match(r"::(error|warning|notice) [^:]*::", line) for line in found)
    assert any("x%250A::warning::\\n::stop" in line for line in found)
    assert not any("%0A" in line or line.startswith("::stop") for line in found)


def test_there_are_no_more_annotations_than_github_shows(copy: Folder) -> None:
    for number in range(25):
        (copy.path / f"stray-{number}.safetensors").write_bytes(copy.first().read_bytes())
    found = annotated(copy.path)
    assert len(found) == 10
    assert found[-1] == "::warning title=not shown::16 more warnings: `dsctl verify --all` lists them"


def test_annotations_and_json_are_refused_together(made: Callable[[str], Path]) -> None:
    done = call("verify", made("small"), "--annotate", "--json")
    assert done.returncode == 2 and not done.stdout
    assert "--json and --annotate cannot be combined" in done.stderr


def action() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "action.yml").read_text())


def filled(text: str, inputs: dict[str, str]) -> str:
    """A value of `env`, as GitHub fills it in."""
    known = {f"inputs.{name}": value for name, value in inputs.items()} | {"github.action_path": str(ROOT)}
    return re.sub(r"\$\{\{ (\S+) \}\}", lambda found: known[found[1]], text)


def taken(step: dict[str, Any], folder: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """A step run as a runner does: the script in a file, with bash's options, and inputs in the environment only."""
    assert step["shell"] == "bash" and "${{" not in step["run"]
    given = {name: value.get("default", "") for name, value in action()["inputs"].items()} | inputs
    script = folder / "step.sh"
    script.write_text(step["run"])
    env = os.environ | {
        "RUNNER_TEMP": str(folder / "runner"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "PYTHONPATH": str(ROOT),
        **{name: filled(value, given) for name, value in step["env"].items()},
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def runner(tmp_path: Path, made: Callable[[str], Path]) -> Path:
    """A runner's folder on which dsctl is installed, with a checkpoint."""
    binaries = tmp_path / "runner" / "dsctl" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (binaries / "python").chmod(0o755)
    shutil.copytree(made("small"), tmp_path / "checkpoint")
    return tmp_path


def test_the_action_passes_a_right_checkpoint(runner: Path) -> None:
    done = taken(action()["runs"]["steps"][1], runner, checkpoint="checkpoint")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = (runner / "summary.md").read_text()
    assert summary.startswith("### dsctl verify\n````text\ncheckpoint: 4 files") and "no problems found" in summary
    assert "no problems found" in done.stdout


def test_the_action_fails_a_wrong_checkpoint_and_annotates_it(runner: Path) -> None:
    truncated(runner / "checkpoint")
    done = taken(action()["runs"]["steps"][1], runner, checkpoint="checkpoint")
    assert done.returncode == 50, done.stdout + done.stderr
    first, pause, *report, resume = done.stdout.splitlines()
    assert first.startswith(f"::error file=checkpoint/{FIRST},title=wrong-size::")
    assert re.fullmatch(r"::stop-commands::[0-9a-f]{32}", pause) and resume == f"::{pause.rpartition(':')[2]}::"
    summary = (runner / "summary.md").read_text()
    assert "error: checkpoint: 1 error" in report and "wrong-size" in summary and "\n::" not in summary


def test_the_action_takes_options_and_says_what_it_refuses(runner: Path) -> None:
    (runner / "checkpoint" / "tokenizer.json").unlink()
    step = action()["runs"]["steps"][1]
    assert taken(step, runner, checkpoint="checkpoint").returncode == 50
    assert taken(step, runner, checkpoint="checkpoint", args="--deep").returncode == 0
    assert taken(step, runner, checkpoint="checkpoint", args="--strict\n--ignore  no-tokenizer").returncode == 0
    assert taken(step, runner, checkpoint="checkpoint", args="").returncode == 0
    done = taken(step, runner, checkpoint="v3.2")
    assert done.returncode == 10 and "no such folder or file on this machine" in done.stdout


@pytest.mark.parametrize("text", ["$(touch pwned)", "`touch pwned`", "x; touch pwned", '"; touch pwned; "', "--help *"])
def test_the_action_runs_nothing_that_an_input_says(runner: Path, text: str) -> None:
    for inputs in ({"checkpoint": text}, {"checkpoint": "checkpoint", "args": text}):
        done = taken(action()["runs"]["steps"][1], runner, **inputs)
        assert done.returncode in (2, 10) or (text == "--help *" and "args" in inputs), done.stdout
        assert not (runner / "pwned").exists()


def test_the_action_installs_its_own_checkout(tmp_path: Path) -> None:
    binaries = tmp_path / "path"
    binaries.mkdir()
    record = 'echo "$0 $*" >> "$RUNNER_TEMP/calls"\n'
    made = 'mkdir -p "$3/bin" && cp "$0" "$3/bin/python"\n'
    (binaries / "python3").write_text(f'#!/bin/bash\n{record}if [ "$2" = venv ]; then {made}fi\n')
    (binaries / "python3").chmod(0o755)
    (tmp_path / "runner").mkdir()
    step = action()["runs"]["steps"][0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(binaries), prepend=os.pathsep)
        done = taken(step, tmp_path)
    assert done.returncode == 0, done.stderr
    venv, pip = (tmp_path / "runner" / "calls").read_text().splitlines()
    assert venv.endswith(f"-m venv {tmp_path}/runner/dsctl")
    assert pip.startswith(f"{tmp_path}/runner/dsctl/bin/python -m pip install ") and pip.endswith(f" {ROOT}")


def hook() -> dict[str, Any]:
    (found,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    return found


def test_the_hook_checks_the_folder_in_its_arguments(copy: Folder) -> None:
    entry = shlex.split(hook()["entry"])
    assert entry[0] == "dsctl" and not hook()["pass_filenames"]
    assert call(*entry[1:], copy.path, "--strict").returncode == 0
    truncated(copy.path)
    assert call(*entry[1:], copy.path, "--strict").returncode == 50
    assert call(*entry[1:]).returncode == 2


@pytest.mark.parametrize(
    ("file", "is_looked_at"),
    [
        ("model-00001-of-000004.safetensors", True),
        ("a/b/model.safetensors.index.json", True),
        ("a/config.json", True),
        ("config.json", True),
        ("a/my-config.json", False),
        ("README.md", False),
    ],
)
def test_the_hook_runs_on_changes_of_a_checkpoint(file: str, is_looked_at: bool) -> None:
    assert bool(re.search(hook()["files"], file)) == is_looked_at


def test_the_page_shows_a_hook_that_there_is() -> None:
    (shown,) = re.findall(r"^```yaml\n(repos:.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (used,) = yaml.safe_load(shown)["repos"][0]["hooks"]
    assert used["id"] == hook()["id"] and used["args"][0].startswith("models/small")


def test_the_page_uses_the_action_with_inputs_that_there_are() -> None:
    (shown,) = re.findall(r"^```yaml\n(jobs:.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (step,) = yaml.safe_load(shown)["jobs"]["verify"]["steps"]
    assert step["with"].keys() <= action()["inputs"].keys()
    assert {name for name, value in action()["inputs"].items() if value.get("required")} <= step["with"].keys()


@pytest.mark.soak
def test_pre_commit_installs_and_runs_the_hook(copy: Folder, tmp_path: Path) -> None:
    """It takes network and most of a minute: pre-commit installs dsctl into an environment of its own."""

    def run(where: Path, *words: object) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"PRE_COMMIT_HOME": str(tmp_path / "cache")}
        env.pop("PYTHONPATH", None)
        return subprocess.run(list(map(str, words)), cwd=where, capture_output=True, text=True, check=False, env=env)

    def committed(where: Path) -> None:
        run(where, "git", "init", "--quiet")
        run(where, "git", "add", ".")
        who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        done = run(where, "git", *who, "commit", "--quiet", "--message", "x")
        assert done.returncode == 0, done.stderr

    ours = tmp_path / "dsctl"
    kept = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "site", "build", "dist")
    shutil.copytree(ROOT, ours, ignore=kept)
    committed(ours)
    revision = run(ours, "git", "rev-parse", "HEAD").stdout.strip()
    repository = tmp_path / "repository"
    shutil.copytree(copy.path, repository / "models" / "small")
    hooks = [{"id": hook()["id"], "args": ["models/small", "--strict"], "files": "^models/small/"}]
    config = {"repos": [{"repo": str(ours), "rev": revision, "hooks": hooks}]}
    (repository / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    committed(repository)
    command = (sys.executable, "-m", "pre_commit", "run", "--all-files", "--verbose")
    done = run(repository, *command)
    assert done.returncode == 0 and "no problems found" in done.stdout, done.stdout + done.stderr
    truncated(repository / "models" / "small")
    done = run(repository, *command)
    assert done.returncode == 1 and "wrong-size" in done.stdout and "exit code: 50" in done.stdout, done.stdout

"""Options are judged before anything is opened: what cannot be is refused though the source does not even exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dsctl
from dsctl.core.errors import UsageError
from dsctl.run.how import How
from tests.support.command import call

# Options with values that they cannot have, and a word of the refusal.
WRONG: list[tuple[list[Any], str]] = [
    (["--device", "nonsense"], "--device"),
    (["--device", "cuda:x"], "--device"),
    (["--engine", "nonsense"], "--engine"),
    (["--address", "auto"], "--address"),
    (["--engine", "processes", "--address", "here:1"], "--address"),
    (["--max-memory", "lots"], "--max-memory"),
    (["--max-memory", "0"], "--max-memory"),
    (["--workers", "many"], "--workers"),
    (["--workers", "0"], "--workers"),
    (["--shard-size", "big"], "--shard-size"),
    (["--scale-fmt", "nonsense"], "--scale-fmt"),
    (["--search"], "--search"),
    (["--to", "fp3"], "--to"),
    (["--recipe", "nowhere.toml"], "--recipe"),
    (["--consume"], "--consume"),
]


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
@pytest.mark.parametrize(("options", "word"), WRONG)
def test_a_wrong_option_is_refused_before_the_source_is_looked_for(
    options: list[Any], word: str, more: list[str], tmp_path: Path
) -> None:
    lines = [["convert", *([] if "--to" in options or "--recipe" in options else ["--bf16"])], ["shard", "--tp", 2]]
    for verb, *words in lines if "--search" in options else [*lines, ["merge"]]:
        done = call(verb, tmp_path / "nowhere", tmp_path / "out", *words, *options, *more)
        assert done.returncode == 2 and word in done.stderr, (verb, done.stderr)
        assert done.stderr.startswith("error: ") and not done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["shard", "--tp", 2, "--rank", "3-"],
        ["shard", "--tp", 2, "--rank", "4-3"],
        ["shard", "--tp", 2, "--rank", "9" * 5000],
        ["shard", "--tp", 2, "--mtp", "keep", "--no-mtp"],
        ["shard"],
        ["slice", "--layers", "x"],
        ["slice", "--layers", "9" * 5000],
        ["slice", "--experts", "0"],
        ["slice", "--experts", "9" * 5000],
        ["slice", "--experts", "99999999999"],
        ["slice", "--to", "fp3"],
        ["slice", "--workers", "0"],
    ],
    ids=lambda words: " ".join(map(str, words))[:40],
)
def test_so_are_wrong_ranks_layers_and_experts(words: list[Any], tmp_path: Path) -> None:
    done = call(words[0], tmp_path / "nowhere", tmp_path / "out", *words[1:])
    assert done.returncode == 2 and "internal error" not in done.stderr, done.stderr
    assert "nowhere" not in done.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["shard", "--tp", "2", "--layout", "nonsense"], 2),
        (["merge", "--layout", "nonsense"], 2),
        (["convert", "--layout", "nonsense"], 2),
        (["plan", "--to", "nonsense"], 2),
        (["plan", "--recipe", "nonsense"], 2),
    ],
)
def test_so_are_names_of_layouts_formats_and_recipes(words: list[str], code: int, tmp_path: Path) -> None:
    places = [tmp_path / "nowhere", *([tmp_path / "out"] if words[0] != "plan" else [])]
    done = call(words[0], *places, *words[1:])
    assert done.returncode == code and "nonsense" in done.stderr and "nowhere" not in done.stderr, done.stderr


# Variables with values that they cannot have, and the option that each gives a value.
VARIABLES = {
    "DSCTL_WORKERS": ("many", "--workers"),
    "DSCTL_MAX_MEMORY": ("lots", "--max-memory"),
    "DSCTL_DEVICE": ("gpu", "--device"),
    "DSCTL_ENGINE": ("threads", "--engine"),
}


@pytest.mark.parametrize("variable", VARIABLES)
def test_an_error_names_the_variable_that_a_value_is_from(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, option = VARIABLES[variable]
    monkeypatch.setenv(variable, value)
    line = ["convert", tmp_path / "nowhere", tmp_path / "out", "--bf16"]
    done = call(*line)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {variable} ({option}): "), done.stderr
    assert call(*line, option, value).stderr.startswith(f"error: {option}: ")


@pytest.mark.parametrize("variable", VARIABLES)
def test_verbs_that_only_look_have_no_variables(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, VARIABLES[variable][0])
    for line in (["models"], ["diff", "v3", "v3.1"], ["inspect", "v3"], ["plan", "v3"], ["convert", "--help"]):
        done = call(*line)
        assert done.returncode == 0 and not done.stderr, done.stderr


def test_options_take_their_values_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    monkeypatch.setattr("dsctl.cli.conversion.located", lambda *_, **__: (_ for _ in ()).throw(UsageError("enough")))
    monkeypatch.setattr("dsctl.cli.conversion.judged", lambda request, options: taken.append(options))
    values = {
        "DSCTL_WORKERS": "3", "DSCTL_MAX_MEMORY": "2GB", "DSCTL_DEVICE": "cuda:1", "DSCTL_ENGINE": "ray",
        "DSCTL_ADDRESS": "here:1",
    }  # fmt: skip
    for variable, value in values.items():
        monkeypatch.setenv(variable, value)
    call("convert", "a", tmp_path / "out", "--bf16")
    call("convert", "a", tmp_path / "out", "--bf16", "--workers", "auto", "--device", "cpu", "--engine", "processes")
    assert [(one.workers, one.max_memory, one.device, one.engine, one.address) for one in taken] == [
        (3, 2 * 10**9, "cuda:1", "ray", "here:1"),
        # The address is that of a cluster, and says nothing where none is asked for.
        (None, 2 * 10**9, "cpu", "processes", None),
    ]


@pytest.mark.parametrize(
    "words", [["--bf16"], ["--to", "published"], ["--recipe", "int4-experts"], ["--fp8", "--no-mtp"]]
)
def test_a_release_is_planned_from_its_description_alone(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = call("convert", "v3.2", tmp_path / "out", *words, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("from") and "built-in description of DeepSeek-V3.2" in done.stdout.splitlines()[0]
    assert "46,493" in done.stdout and not list(tmp_path.iterdir())


def test_a_shard_of_a_release_is_judged_though_its_description_is_enough(tmp_path: Path) -> None:
    line = ["shard", "v3.2", tmp_path / "out", "--tp", 8, "--dry-run"]
    assert call(*line).returncode == 0
    assert call(*line, "--device", "nonsense").returncode == call(*line, "--engine", "nonsense").returncode == 2


@pytest.mark.parametrize(
    ("words", "word"),
    [
        ({"engine": "nonsense"}, "--engine"),
        ({"device": "nonsense"}, "--device"),
        ({"address": "auto"}, "--address"),
        ({"workers": 0}, "--workers"),
        ({"workers": "2"}, "--workers"),
        ({"workers": True}, "--workers"),
        ({"max_memory": "8GB"}, "--max-memory"),
        ({"max_memory": -1}, "--max-memory"),
        ({"max_memory": float("nan")}, "--max-memory"),
        ({"max_memory": float("inf")}, "--max-memory"),
    ],
)
def test_the_python_interface_judges_them_first_too(words: dict[str, Any], word: str, tmp_path: Path) -> None:
    conversion = dsctl.open(tmp_path / "nowhere").to("bf16")
    with pytest.raises(UsageError, match=word) as refused:
        conversion.run(tmp_path / "out", **words)
    assert refused.value.hint
    with pytest.raises(UsageError, match=word):
        How(**words)
    assert not list(tmp_path.iterdir())

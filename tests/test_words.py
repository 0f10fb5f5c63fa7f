"""Help, messages and pages speak plainly: short help with a verb first, and none of the words of the old style."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import actions, verbs

ROOT = Path(__file__).parents[1]
LONGEST = 90
# The verbs that the help of an option or of a command may begin with.
IMPERATIVES = {
    "Accept", "Allow", "Assign", "Assume", "Check", "Choose", "Compare", "Compute", "Consider", "Continue",
    "Convert", "Copy", "Count", "Cut", "Delete", "Distribute", "Do", "Download", "Draw", "Drop", "Estimate", "Exit",
    "Expect", "Fail", "Fix", "Fold", "Group", "Grow", "Ignore", "Include", "Install", "Join", "Keep", "Leave", "Limit",
    "List", "Make", "Measure", "Merge", "Print", "Quantize", "Read", "Regroup", "Replace", "Require", "Reserve", "Run",
    "Search", "Set", "Show", "Split", "Start", "Store", "Treat", "Upload", "Use", "Verify", "Write",
}  # fmt: skip
# Words of the old style, as regular expressions. Each is searched as a whole word or phrase, in any case.
OLD = (
    "alike", "anew", "at all", "beforehand", "but for", "carried over", "dealt out", "for want of", "furthest",
    "goes by", "held against", "held by", "hold it against", "in so far as", "is called", "is named", "is none",
    "is said", "is told", "is wanted", "it is the same", "kept aside", "likewise", "looked after", "made true",
    "mend", "mends", "mended", "mending", "moved as they are", "must stay whole", "no list", "no page", "nobody",
    "none is", "none of", "nothing to fetch", "of several parts", "of which", "on the way", "one by one", "otherwise",
    "prediction layer", "prediction layers", "put together", "so many", "spread over", "takes the place", "taken as",
    "tell", "tells", "there are none", "there in part", "there is none", "told", "to look at", "what a", "what does",
    "what is", "what it", "what people", "what the", "what they", "whatever", "wherever", "which nobody", "whoever",
    "whose disk", "with a word", "without a word", r"(?<!there )(?:is|are) no(?= (?!longer))",
    r"exit code \d+ (?:if|where)",
)  # fmt: skip
PATTERN = re.compile(rf"\b(?:{'|'.join(OLD)})\b", re.IGNORECASE)
# Where such a word is the right one: the end of a file's path, and the words around it.
EXCEPTIONS = (
    ("", "it means"),
)  # fmt: skip
# Every page. Of the changelog only the newest section counts; of CONTRIBUTING.md not its list of old words.
PAGES = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md"),
    *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md")),
)


def said() -> list[tuple[str, str]]:
    """Every help text: of commands, line by line, and of their parameters."""
    found = []
    for verb, command in actions().items():
        found.append((verb, command.help.partition("Examples:")[0]))
        found += [(f"{verb} {name(param)}", param.help) for param in command.params]
    found += [(name(param), param.help) for param in verbs().params]
    return found


def name(param: Any) -> str:
    return str(param.metavar if param.param_type_name == "argument" else param.opts[0])


@pytest.mark.parametrize("verb", [*actions(), "delta"])
def test_help_is_short_and_begins_with_a_verb(verb: str) -> None:
    command = actions().get(verb) or verbs().commands[verb]
    for param in command.params:
        assert param.help and len(param.help) <= LONGEST, f"{name(param)}: {len(param.help)} characters: {param.help}"
        if param.param_type_name == "option":
            assert param.help.split()[0] in IMPERATIVES, f"{name(param)}: {param.help}"
        assert "default: 0]" not in param.help and "{" not in param.help
    first = " ".join(command.help.partition("\n\n")[0].split())
    assert first.split()[0] in IMPERATIVES and first.endswith("."), first


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("verb", actions())
def test_help_shows_no_types_and_stays_within_the_terminal(
    verb: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert not verbs()([*verb.split(), "--help"], prog_name="dsctl", standalone_mode=False)
    shown = capsys.readouterr().out
    assert not re.search(r"<\w+>|\{\w+\}|\[default: 0\]|1<=x", shown), shown
    long = [line for line in shown.splitlines() if len(line) > width and not line.startswith("  dsctl ")]
    assert long == []
    for param in actions()[verb].params:
        assert name(param) in shown


def old_words(text: str, where: str = "") -> list[str]:
    """The words of the old style in a text."""
    plain = re.sub(r"\{\w*\}", "", text)
    for path, words in EXCEPTIONS:
        if where.endswith(path):
            plain = plain.replace(words, "")
    return [match.group() for match in PATTERN.finditer(" ".join(plain.split()))]


def test_help_has_no_word_of_the_old_style() -> None:
    found = {where: words for where, text in said() if (words := old_words(text))}
    assert found == {}


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """The strings of a module that can be read as text: all that have a space, except docstrings."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            if id(node) not in docstrings:
                yield node.lineno, node.value


def modules() -> list[Path]:
    return sorted((ROOT / "dsctl").rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT / "dsctl")))
def test_messages_have_no_word_of_the_old_style(path: Path) -> None:
    found = [f"{path}:{line}: {words}" for line, text in messages(path) if (words := old_words(text, str(path)))]
    assert found == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "dsctl/show/drawing/templates").glob("*.html")), ids=lambda path: path.name
)
def test_templates_of_pages_have_no_word_of_the_old_style(path: Path) -> None:
    text = re.sub(r"<style>.*?</style>|<script>.*?</script>|<[^>]*>", " ", path.read_text(), flags=re.DOTALL)
    assert old_words(text, str(path)) == []


@pytest.mark.parametrize("release", sorted((ROOT / "dsctl/releases").glob("*.json")), ids=lambda path: path.stem)
def test_notes_on_releases_have_no_word_of_the_old_style(release: Path) -> None:
    notes = json.loads(release.read_text())["notes"]
    assert old_words(notes) == [] and notes.endswith(".")


@pytest.mark.parametrize("page", PAGES)
def test_pages_have_no_word_of_the_old_style(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    text = re.sub(r"`(?:[^`\n]|\n(?!\n))+`", "CODE", text)
    if page == "CHANGELOG.md":
        text = "## [".join(text.split("## [")[:2])
    text = re.sub(r"^## Words$.*?(?=^## )", "", text, flags=re.DOTALL | re.MULTILINE)
    assert old_words(text) == []


def test_every_page_of_the_table_is_there() -> None:
    assert [page for page in PAGES if not (ROOT / page).exists()] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the layer is told anew", ["is told", "anew"]),
        ("What is wrong\n with it", ["What is"]),
        ("A toldable alikeness", []),
        ("Show what it means", []),
        ("'3-' is not a list of ranks", []),
    ],
)
def test_the_search_finds_what_it_is_for(text: str, words: list[str]) -> None:
    assert old_words(text) == words

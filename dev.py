"""Set up, check and test dsctl on a machine that has only Python and pip: `python3 dev.py setup | check | ...`.

It installs everything into `.venv` beside this file. It uses the standard library only. A Python that is too old can
parse it and prints a hint.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
CONSTRAINTS = VENV / "torch.txt"
# A build of torch without CUDA, if the package index has one.
CPU_TORCH = "torch==2.13.0+cpu"
TORCH = "torch>=2.7"
# The tests keep up to 2 GB of files at a time, and their processes take about 4 GB of memory.
SCRATCH_BYTES = 12 << 30
EXTRAS = {"setup": "[torch]", "dev": "[dev]"}
# One thread per worker, because workers with several threads wait for each other. Bytecode is kept, because the tests
# start hundreds of processes.
TESTED = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}


class Failed(Exception):
    """A step that failed: the message and the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def say(text: str) -> None:
    """Print a line about the current step to stderr."""
    print(f"dev: {text}", file=sys.stderr, flush=True)


def run(*command: object, env: dict[str, str] | None = None) -> None:
    """Run a tool in the root of the repository.

    Raises:
        Failed: the tool failed; the exit code is the tool's.
    """
    words = [str(word) for word in command]
    code = subprocess.run(words, cwd=ROOT, env={**os.environ, **(env or {})}, check=False).returncode
    if code:
        raise Failed(f"failed with exit code {code}: {' '.join(words)}", code)


def works(*command: object) -> bool:
    """Whether a command succeeds. Its output is hidden."""
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=ROOT, capture_output=True, check=False).returncode == 0


def pip(*arguments: object) -> tuple[object, ...]:
    """A command line for the pip in `.venv`."""
    return (PYTHON, "-m", "pip", "--disable-pip-version-check", *arguments)


def make_venv() -> None:
    """Make `.venv`, even if the system's Python lacks ensurepip."""
    if PYTHON.exists() and works(PYTHON, "-c", "import pip, sys; sys.exit(sys.version_info < (3, 11))"):
        return
    if VENV.exists():
        raise Failed(".venv exists, but lacks pip or has a Python older than 3.11\nhint: remove .venv and try again")
    say(f"making .venv with Python {platform.python_version()}")
    if works(sys.executable, "-m", "venv", VENV):
        return
    bare = works(sys.executable, "-m", "venv", "--clear", "--without-pip", VENV)
    if not (bare and works(sys.executable, "-m", "pip", "--python", PYTHON, "install", "pip")):
        raise Failed(
            "cannot make a virtual environment: this Python has neither ensurepip nor a recent pip\n"
            "hint: install your system's venv package (Debian, Ubuntu: apt install python3-venv)"
        )


def torch_version() -> str | None:
    """The version of torch in `.venv`, or None."""
    code = "from importlib.metadata import version; print(version('torch'))"
    found = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def install_torch(choice: str, options: list[str]) -> None:
    """Install torch if it is missing. `cpu` avoids the gigabytes of CUDA packages that the usual Linux build needs."""
    have = torch_version()
    chosen = CONSTRAINTS.read_text().partition("# ")[2].strip() if CONSTRAINTS.is_file() else choice
    if have and choice in ("keep", chosen):
        return
    say(f"installing torch for the {'CPU' if choice == 'cpu' else 'GPU'} (choose with --torch cpu|gpu|keep)")
    if have:
        run(*pip("uninstall", "-q", "-y", "torch"))
    if choice == "cpu" and sys.platform == "linux" and _install_cpu_torch(options):
        return
    run(*pip("install", "-q", *options, TORCH))


def _install_cpu_torch(options: list[str]) -> bool:
    if works(*pip("install", "-q", *options, CPU_TORCH)):
        return True
    # uv finds the CPU builds without an index option.
    if works(*pip("install", "-q", "uv")):
        if works(PYTHON, "-m", "uv", "pip", "install", "--python", PYTHON, "--torch-backend", "cpu", TORCH):
            return True
    say("cannot find a CPU build of torch: installing the usual one, which may take several gigabytes")
    return False


def install(extra: str, choice: str) -> None:
    """Install the packages of `pyproject.toml` into `.venv`, unless they are installed already."""
    make_venv()
    wanted = _state(choice)
    enough = [VENV / f".dsctl-{name}" for name in {extra, "dev"}]
    if any(file.is_file() and file.read_text() == wanted for file in enough):
        return
    # The pip that comes with an older Python may need a minute more to resolve versions. It works too.
    works(*pip("install", "-q", "--upgrade", "pip"))
    # Tests import little of what they install, and compiling all of it takes longer than installing it.
    quick = ["--no-compile"] * (extra == "dev")
    install_torch(choice, quick)
    # Keep pip from replacing the installed torch with a different build.
    CONSTRAINTS.write_text(f"torch=={torch_version()}  # {choice}\n")
    say(f"installing dsctl{EXTRAS[extra]}")
    run(*pip("install", "-q", *quick, "-c", CONSTRAINTS, "-e", f".{EXTRAS[extra]}"))
    (VENV / f".dsctl-{extra}").write_text(_state(choice))


def _state(choice: str) -> str:
    """A digest of the inputs that decide the contents of `.venv`."""
    digest = hashlib.sha256(f"{choice} {ROOT} {torch_version()}".encode())
    digest.update((ROOT / "pyproject.toml").read_bytes())
    return digest.hexdigest()


def tool(name: str) -> Path:
    """The path of a program in `.venv`."""
    return PYTHON.parent / name


def setup(choice: str, rest: list[str]) -> None:
    """Install dsctl with torch into .venv."""
    install("setup", choice)
    say("dsctl is ready: .venv/bin/dsctl")


def lint(choice: str, rest: list[str]) -> None:
    """Check style and import layers."""
    install("dev", choice)
    run(tool("ruff"), "check", "-q")
    run(tool("ruff"), "format", "-q", "--check")
    run(tool("lint-imports"), "--no-logo", "--no-cache")


def types(choice: str, rest: list[str]) -> None:
    """Check types."""
    install("dev", choice)
    run(tool("mypy"))


def test(choice: str, rest: list[str]) -> None:
    """Run the tests only, on up to four cores."""
    install("dev", choice)
    workers = min(4, os.cpu_count() or 1)
    spread = ["-n", str(workers)] if workers > 1 else []
    with scratch(rest) as place:
        run(PYTHON, "-m", "pytest", "-q", *spread, *place, *rest, env=TESTED)


@contextmanager
def scratch(rest: list[str]) -> Iterator[list[str]]:
    """Choose a folder in memory for the tests, which sync thousands of files, if memory is plenty.

    Yields the option of pytest that names the folder; it is empty if `rest` names one or if memory is short.
    """
    memory = Path("/dev/shm")  # noqa: S108  mkdtemp makes the folder, for this user alone
    plenty = memory.is_dir() and min(shutil.disk_usage(memory).free, available()) > SCRATCH_BYTES
    if not plenty or any(word.startswith("--basetemp") for word in rest):
        yield []
        return
    folder = tempfile.mkdtemp(prefix="dsctl-", dir=memory)
    # Files in memory outlive the process, so remove them on SIGTERM too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield [f"--basetemp={folder}/all"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def available() -> int:
    """Available memory in bytes; 0 if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 0)


def check(choice: str, rest: list[str]) -> None:
    """Check style, imports and types, and run the tests; every change must pass this."""
    install("dev", choice)
    failed = []
    # mypy needs one core for most of a minute. It runs beside the tests, which often wait for the disk.
    with ThreadPoolExecutor() as pool:
        typed = pool.submit(types, choice, [])
        for step in (partial(lint, choice, []), partial(test, choice, rest), typed.result):
            try:
                step()
            except Failed as error:
                failed.append(error)
    if failed:
        raise Failed("\ndev: ".join(map(str, failed)), failed[0].code)


def browser(choice: str, rest: list[str]) -> None:
    """Test the pages of --html in a browser: the system's chromium, or the one in $CHROMIUM."""
    if not (os.environ.get("CHROMIUM") or shutil.which("chromium")):
        raise Failed("cannot find chromium\nhint: install your system's chromium, or set CHROMIUM=/path/to/chrome")
    install("dev", choice)
    run(*pip("install", "-q", "-c", CONSTRAINTS, "playwright>=1.45"))
    run(PYTHON, "-m", "pytest", "-q", "-m", "browser", "tests/browser", *rest)


def soak(choice: str, rest: list[str]) -> None:
    """Run the long tests."""
    install("dev", choice)
    run(PYTHON, "-m", "pytest", "-q", "-m", "soak", *rest)


def ray(choice: str, rest: list[str]) -> None:
    """Run the tests that need a Ray cluster, on a cluster on this machine."""
    install("dev", choice)
    run(*pip("install", "-q", "-c", CONSTRAINTS, "-e", ".[ray]"))
    run(PYTHON, "-m", "pytest", "-q", "-m", "ray", *rest)


def bench(choice: str, rest: list[str]) -> None:
    """Run the benchmarks and print their tables."""
    install("dev", choice)
    for script in sorted((ROOT / "benchmarks").glob("[!_]*.py")):
        run(PYTHON, "-m", f"benchmarks.{script.stem}", *rest)


def docs(choice: str, rest: list[str]) -> None:
    """Update docs/reference.md, run every command in README and docs, and build site/."""
    install("dev", choice)
    run(PYTHON, "-m", "tests.tools.reference")
    run(PYTHON, "-m", "pytest", "-q", "tests/test_docs.py", *rest)
    run(PYTHON, "-m", "mkdocs", "build", "--strict", "--quiet")


TASKS = {task.__name__: task for task in (setup, check, lint, types, test, browser, ray, soak, bench, docs)}


def main() -> int:
    """Parse the command line and run one task."""
    if sys.version_info < (3, 11):  # noqa: UP036  an older Python must print this, not a syntax error
        say(f"dsctl needs Python 3.11 or newer; this is Python {platform.python_version()}")
        say("hint: use a newer Python, such as `python3.12 dev.py setup`")
        return 1
    summary = "\n".join(f"  {name:8}{task.__doc__}" for name, task in TASKS.items())
    parser = argparse.ArgumentParser(
        prog="dev.py",
        description="Set up, check and test dsctl in .venv. Further arguments go to pytest.",
        epilog=f"tasks:\n{summary}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("task", choices=TASKS, metavar="TASK", help="run one of the tasks below")
    parser.add_argument(
        "--torch",
        choices=("cpu", "gpu", "keep"),
        default=os.environ.get("DSCTL_TORCH", "cpu"),
        help="build of torch to install, or keep the installed one (default: $DSCTL_TORCH, or cpu)",
    )
    arguments, rest = parser.parse_known_args()
    try:
        TASKS[arguments.task](arguments.torch, rest)
    except Failed as error:
        say(str(error))
        return error.code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

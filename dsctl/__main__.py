"""The entry point of `python -m dsctl` and of the console script."""

import gc
import sys

# Written out: nothing of dsctl is imported yet.
INTERRUPTED_AS_JSON = (
    '{"error": {"kind": "Interrupted", "exit_code": 130, "message": "interrupted", "issues": [], "hint": null}}\n'
)


def main() -> None:
    """Run `dsctl`. An interrupt while it is being imported ends it without a traceback too."""
    # A command runs for seconds and makes up to millions of small objects that stay: collecting finds nothing.
    gc.set_threshold(1_000_000, 50, 50)
    try:
        from dsctl.cli import main as command
    except KeyboardInterrupt:
        sys.stderr.write(INTERRUPTED_AS_JSON if "--json" in sys.argv else "error: interrupted\n")
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()

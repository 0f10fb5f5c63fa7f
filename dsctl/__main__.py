"""`python -m dsctl`, and where the console script begins."""

import gc
import sys


def main() -> None:
    """Run `dsctl`. An interrupt before it can answer one itself ends it without a traceback too."""
    # A command lives for seconds and makes up to millions of small objects that stay, from its imports on:
    # collecting finds nothing.
    gc.set_threshold(1_000_000, 50, 50)
    try:
        from dsctl.cli import main as command
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()

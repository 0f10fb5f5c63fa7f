"""`python -m dsctl`, and where the console script begins."""

import sys


def main() -> None:
    """Run `dsctl`. An interrupt before it can answer one itself ends it without a traceback too."""
    try:
        from dsctl.cli import main as command
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()

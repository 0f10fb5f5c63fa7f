"""The entry point of `python -m dsctl` and of the console script."""

import gc
import os
import sys

# Written out: nothing of dsctl is imported yet.
INTERRUPTED_AS_JSON = (
    '{"error": {"kind": "Interrupted", "exit_code": 130, "message": "interrupted", "issues": [], "hint": null}}\n'
)


def main() -> None:
    """Run `dsctl`. An interrupt while it is being imported ends it without a traceback too."""
    # A command runs for seconds and makes up to millions of small objects that stay: collecting finds nothing.
    gc.set_threshold(1_000_000, 50, 50)
    # No matrices are multiplied here, and numpy's idle BLAS threads would each spin for a tenth of a second.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from dsctl.cli import main as command
    except KeyboardInterrupt:
        sys.stderr.write(INTERRUPTED_AS_JSON if "--json" in sys.argv else "error: interrupted\n")
        sys.exit(130)
    try:
        command()
    finally:
        # Python's last collections would walk all of torch's objects for half a second, and free nothing.
        gc.freeze()


if __name__ == "__main__":
    main()

"""What every test can rely on."""

from __future__ import annotations

import os

# pytest-xdist gives its workers a width of 80; without one, output has the width of a pipe.
os.environ.pop("COLUMNS", None)

"""What the process that forks workers imports for them: torch, and the work on one job.

Where memory runs out on the way, that process ends without a word: the driver says what happened.
"""

import os

try:
    import dsctl.work.job  # noqa: F401
except ImportError:
    # Each worker meets it again, and tells the driver.
    raise
except BaseException:  # noqa: BLE001  half of torch is there, and anything may follow from that
    os._exit(1)

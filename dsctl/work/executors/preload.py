"""The imports of the process that forks workers: torch, and the work on one job.

If memory runs out during these imports, that process ends silently, and the driver reports it.
"""

import gc
import os

# Collections during these imports find nothing; frozen objects stay on pages that the workers share.
gc.disable()
try:
    import dsctl.work.job  # noqa: F401

    gc.freeze()
    gc.enable()
except ImportError:
    # Each worker meets the same error, and reports it to the driver.
    raise
except BaseException:  # noqa: BLE001  half of torch is loaded, and any error may follow
    os._exit(1)

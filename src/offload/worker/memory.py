"""How much memory this process uses."""

from __future__ import annotations

import os
import sys


def resident_bytes() -> int:
    """Resident memory in bytes: now on Linux, its highest value elsewhere."""
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource  # which Windows lacks

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

"""Processors that do not sleep while something is measured.

In a virtual machine a processor that halts gives itself back to the host, which returns it late: on the machine that
this was written on, up to 40 % of the time was stolen by that, and a request took 20 to 50 ms at p99 (0.3 ms without)
for no reason of the server's. Held at 0, `/dev/cpu_dma_latency` makes idle processors poll instead, for as long as it
is open.
Source: https://docs.kernel.org/power/pm_qos_interface.html; cyclictest does the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LATENCY = Path("/dev/cpu_dma_latency")


@contextmanager
def awake() -> Iterator[bool]:
    """Meanwhile no processor sleeps; False where that is not allowed (it takes root), and the noise stays."""
    try:
        held = LATENCY.open("wb", buffering=0)
    except OSError:
        yield False
        return
    with held:
        held.write(struct.pack("i", 0))  # microseconds
        yield True

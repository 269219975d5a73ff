"""The exit codes of the `fairvisor` command, part of its interface: scripts tell a refused bundle from a typing error.

0 is success and 130 an interrupt from the keyboard (128 + SIGINT), as shells have it.
"""

from __future__ import annotations

from typing import Final

FAILED: Final = 1
UNREACHABLE: Final = 2
USAGE: Final = 3
INTERRUPTED: Final = 130

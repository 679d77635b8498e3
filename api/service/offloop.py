"""Short blocking work off the event loop, on threads of its own.

Long downloads and queries may fill the pools that they run on: nobody's key waits for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_THREADS = ThreadPoolExecutor(4, thread_name_prefix="service-gate")


async def off_loop(work: Callable[[], T]) -> T:
    """What `work` returns or raises; it should take milliseconds."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, work)

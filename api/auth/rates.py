"""How often a key may ask, and how often an address may be wrong about its key."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from nvpstore.errors import UsageError

FAILURES = "30/minute"  # malformed and unknown keys of one address
MOST_REMEMBERED = 100_000  # keys and addresses; then all of them start anew


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What is left of a limit: `remaining` of `limit` requests in any `window_seconds`."""

    name: str
    allowed: bool
    limit: int
    remaining: int
    window_seconds: int
    reset_seconds: int

    def headers(self) -> dict[str, str]:
        """As draft-ietf-httpapi-ratelimit-headers has it; with Retry-After where it was refused."""
        said = {
            "RateLimit-Policy": f'"{self.name}";q={self.limit};w={self.window_seconds}',
            "RateLimit": f'"{self.name}";r={self.remaining};t={self.reset_seconds}',
        }
        return said if self.allowed else {**said, "Retry-After": str(self.reset_seconds)}


class Rates:
    """Moving windows in memory: a restart forgets them. `rate` is as `1200/minute`."""

    def __init__(self, rate: str, *, failures: str = FAILURES) -> None:
        try:
            self._requests, self._failures = parse(rate), parse(failures)
        except ValueError:
            raise UsageError(
                f"NVP_RATE_LIMIT is {rate!r}: a number and second, minute, hour or day are needed, "
                "such as 1200/minute"
            ) from None
        self._storage = MemoryStorage()
        self._windows = MovingWindowRateLimiter(self._storage)

    def request(self, key_id: str) -> Allowance:
        """One more request of this key."""
        return self._hit(self._requests, "requests", key_id)

    def failure(self, address: str) -> Allowance:
        """One more request with a wrong key from this address."""
        return self._hit(self._failures, "failures", _network(address))

    def _hit(self, item: RateLimitItem, name: str, who: str) -> Allowance:
        # The storage keeps an empty list for all whom it ever saw.
        if len(self._storage.events) > MOST_REMEMBERED:
            self._storage.reset()
        allowed = self._windows.hit(item, name, who)
        window = self._windows.get_window_stats(item, name, who)
        return Allowance(
            name=name,
            allowed=allowed,
            limit=item.amount,
            remaining=max(0, window.remaining),
            window_seconds=item.get_expiry(),
            reset_seconds=max(1, math.ceil(window.reset_time - time.time())),
        )


def _network(address: str) -> str:
    """An IPv6 host has 2^64 addresses of its own: they count as one."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return parsed.exploded[:19]
    return str(parsed)

"""How often may somebody be wrong: limits of failed proofs, per address and per token id. Bounded memory.

Facts: a proof that holds is never limited by what others guess beside it, so many people behind one address get in
while one of them guesses. Only guesses at a token's own secret, from the same address, keep that secret from being
looked at, for some seconds; a secret that this process has seen good within the hour is let in even then.
"""

import ipaddress
import time
from collections import OrderedDict
from dataclasses import dataclass

from server.errors import RequestError

MOST_KNOWN = 10_000
GOOD_S = 3600.0


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many failures at once, and after how many seconds one more."""

    burst: int
    refill_s: float


PER_ADDRESS = Allowance(60, 1.0)
PER_TOKEN = Allowance(20, 3.0)


class _Failures:
    """Failures by key, forgotten as their allowance refills; the longest unused key is forgotten first."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, key: str, moment: float) -> float:
        """How long until one more is allowed; 0 where it is now."""
        return max(0.0, (self._now_spent(key, moment) - self._allowance.burst + 1) * self._allowance.refill_s)

    def add(self, key: str, moment: float) -> None:
        """One more."""
        self._spent[key] = min(self._now_spent(key, moment) + 1, float(self._allowance.burst)), moment
        self._spent.move_to_end(key)
        if len(self._spent) > MOST_KNOWN:
            self._spent.popitem(last=False)

    def __bool__(self) -> bool:
        """Whether any failure is remembered."""
        return bool(self._spent)

    def _now_spent(self, key: str, moment: float) -> float:
        spent, at = self._spent.get(key, (0.0, moment))
        return max(0.0, spent - (moment - at) / self._allowance.refill_s)


class Attempts:
    """Counts in this process; each of several processes counts for itself."""

    def __init__(self) -> None:
        self._by_address = _Failures(PER_ADDRESS)
        self._by_token = _Failures(PER_TOKEN)
        self._good: OrderedDict[str, float] = OrderedDict()

    def failed(self, peer: str | None, token_id: str | None = None) -> None:
        """A proof did not hold. RequestError `too_many_attempts` where that was once too often."""
        moment, address = time.monotonic(), network_of(peer)
        wait_s = self._by_address.wait_s(address, moment)
        self._by_address.add(address, moment)
        if token_id is not None:
            self._by_token.add(f"{address} {token_id}", moment)
        if wait_s > 0:
            raise too_many(wait_s)

    def check_secret(self, peer: str | None, token_id: str, secret_sha256: str) -> None:
        """Before a secret is compared. RequestError `too_many_attempts` while others are tried for the same token."""
        if not self._by_token:
            return  # nobody guesses: the way of every request
        wait_s = self._by_token.wait_s(f"{network_of(peer)} {token_id}", moment := time.monotonic())
        if wait_s > 0 and moment - self._good.get(secret_sha256, moment - GOOD_S) >= GOOD_S:
            raise too_many(wait_s)

    def good(self, secret_sha256: str) -> None:
        """A secret was right."""
        self._good[secret_sha256] = time.monotonic()
        self._good.move_to_end(secret_sha256)
        if len(self._good) > MOST_KNOWN:
            self._good.popitem(last=False)


def too_many(wait_s: float) -> RequestError:
    """The refusal, which tells when to come again."""
    return RequestError(
        "too_many_attempts", "too many wrong tokens or codes from here: wait", retry_after_s=int(wait_s) + 1)


def network_of(peer: str | None) -> str:
    """What counts as one address: of IPv6 the /64, which one customer has to himself (RFC 6177)."""
    try:
        address = ipaddress.ip_address(peer or "")
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address.packed[:8] + bytes(8), 64)))
    return str(address)

"""Single use: which ``jti`` (RFC 7519 section 4.1.7) were presented already.

Invariant: no ``jti`` is given out twice, whatever the clock does. What was forgotten, to stay
within bounds, is remembered as one number: a token that does not outlive the latest forgotten one
could be one of them and is refused. That happens only after the clock went back.

Tokens without ``jti`` may be used again; a restart forgets. Issuers share one memory: the RFC asks
them to keep their ``jti`` apart, and a collision refuses a token, never accepts one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from agentd import AgentdError
from agentd.sansio.tokens import TokenError

if TYPE_CHECKING:
    from agentd.sansio.tokens import Claims


class TokenCacheFull(AgentdError):
    """As many tokens are in use as can be remembered; an older one has to expire first."""

    def __init__(self) -> None:
        super().__init__("cannot accept another token before older ones expire")


class UsedTokens:
    """The tokens presented: reserved while their request waits, then spent or released.

    ``capacity`` is in tokens (about 250 bytes each); ``leeway``, in seconds, the policy's.
    """

    def __init__(self, capacity: int = 65536, *, leeway: float = 5) -> None:
        self._capacity = capacity
        self._leeway = leeway
        self._expiry: dict[str, float] = {}
        self._reserved: dict[str, Claims] = {}
        self._forgotten = -math.inf  # the latest exp among the forgotten
        self._tidy_at = min(capacity, 1024)
        self._earliest = math.inf  # no token expires before; only as good as the last tidying

    def __len__(self) -> int:
        return len(self._expiry)

    def reserve(self, claims: Claims, now: float) -> None:
        """Take the token for one request at ``now`` (Unix seconds).

        Raises TokenError when it was presented before, TokenCacheFull when there is no room.
        """
        if claims.jti is None:
            return
        if claims.jti in self._expiry:
            raise TokenError("used")
        if claims.exp <= self._forgotten:
            raise TokenError("used, perhaps: the clock went back")
        if len(self._expiry) >= self._tidy_at:
            self._tidy(now)
        if len(self._expiry) >= self._capacity:
            raise TokenCacheFull
        self._expiry[claims.jti] = claims.exp
        self._earliest = min(self._earliest, claims.exp)
        self._reserved[claims.jti] = claims

    def spend(self, claims: Claims) -> None:
        """The request was granted: the token is used up."""
        if claims.jti is not None and self._reserved.get(claims.jti) is claims:
            del self._reserved[claims.jti]

    def release(self, claims: Claims) -> None:
        """The request was refused for another reason: the token may come again, unless spent."""
        if claims.jti is not None and self._reserved.get(claims.jti) is claims:
            del self._reserved[claims.jti]
            del self._expiry[claims.jti]

    def _tidy(self, now: float) -> None:
        """Forget the expired; next time when there are twice as many, so that it costs little."""
        if self._earliest > now - self._leeway:
            return
        for jti in [jti for jti, exp in self._expiry.items() if exp <= now - self._leeway]:
            self._forgotten = max(self._forgotten, self._expiry.pop(jti))
            self._reserved.pop(jti, None)
        self._earliest = min(self._expiry.values(), default=math.inf)
        self._tidy_at = min(self._capacity, max(1024, 2 * len(self._expiry)))

"""Tokens: JWTs (RFC 7519) checked against pinned keys and a policy; and minted.

Invariant: whatever the text, the answer is Claims or a TokenError that says one short reason and
nothing of the token. The header chooses among the keys and decides nothing else: its algorithm must
be the chosen key's, ``jwk``, ``jku`` and ``x5c`` are not looked at, ``crit`` and ``b64`` refused.

Refuses to know the clock (time is passed in, Unix seconds), HTTP, and whether a token was used
before: that is :mod:`agentd.sansio.used`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentd import AgentdError
from agentd.sansio.context import valid_id
from agentd.sansio.jwk import ALGORITHMS, KeyFormatError, parse_keys, parse_signing_key
from agentd.sansio.jws import (
    Key,
    base64url_decode,
    base64url_encode,
    json_object,
    sign,
    signed_by,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ALGORITHMS",
    "Claims",
    "Key",
    "KeyFormatError",
    "MintError",
    "TokenError",
    "TokenPolicy",
    "UnknownKeyID",
    "mint",
    "parse_keys",
    "verify",
]

MAX_SIZE = 8192
"""Characters a token may have."""

MAX_TEXT = 256
"""Characters ``sub`` and ``jti`` may have."""

MAX_MINTED = 10**9
"""Seconds a minted token may be good for: beyond 30 years it is a mistake."""


class TokenError(AgentdError):
    """A token was refused. ``reason`` is a short category for the log, without any value."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"cannot accept the token: {reason}")
        self.reason = reason


class UnknownKeyID(TokenError):
    """The token names a key that is not there: a fresher set of keys may have it."""

    def __init__(self) -> None:
        super().__init__("unknown kid")


class MintError(AgentdError):
    """A token was asked for that :func:`verify` would refuse whatever the policy."""

    def __init__(self, claim: str) -> None:
        super().__init__(f"cannot mint such a token: its {claim} would be refused")


@dataclass(frozen=True, slots=True)
class TokenPolicy:
    """What a token must say. ``leeway`` and ``max_ttl`` are seconds.

    ``audience`` and ``issuer`` are compared exactly when set. When no audience is set, a token's
    ``aud`` is not looked at.
    """

    audience: str | None = None
    issuer: str | None = None
    leeway: float = 5
    max_ttl: float = 3600


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says. ``exp`` is Unix seconds; ``context`` whether it may bring one."""

    sub: str | None
    run: str | None
    jti: str | None
    exp: float
    context: bool


def verify(token: str, keys: Sequence[Key], policy: TokenPolicy, now: float) -> Claims:
    """Check a token's signature and claims (RFC 7515 section 5.2, RFC 7519 section 7.2).

    Raises UnknownKeyID when the keys have ``kid``s and none is the token's, else TokenError.
    """
    if len(token) > MAX_SIZE:
        raise TokenError("too long")
    parts = [base64url_decode(segment) for segment in token.split(".", 3)]
    if len(parts) != 3 or parts[0] is None or parts[1] is None or parts[2] is None:
        raise TokenError("malformed")
    header = json_object(parts[0])
    if header is None:
        raise TokenError("malformed header")
    signing_input = token.rpartition(".")[0].encode()
    candidates, unknown = _candidates(header, keys)
    if not any(signed_by(key, signing_input, parts[2]) for key in candidates):
        raise UnknownKeyID if unknown else TokenError("signature")
    claims = json_object(parts[1])
    if claims is None:
        raise TokenError("malformed claims")
    return _check(claims, policy, now)


def mint(
    private_key: bytes,
    *,
    now: float,
    ttl: float,
    jti: str,
    run: str | None = None,
    sub: str | None = None,
    context: bool = False,
    audience: str | None = None,
    issuer: str | None = None,
    algorithm: str | None = None,
) -> str:
    """Sign a token that is good for ``ttl`` seconds from ``now`` (Unix seconds), floored.

    ``private_key`` is a PEM private key, or the secret when ``algorithm`` is HMAC. Raises
    KeyFormatError, or MintError that names the claim.
    """
    key = parse_signing_key(private_key, algorithm=algorithm)
    if not abs(ttl) < MAX_MINTED:
        raise MintError("ttl")
    claims = {
        "iat": int(now),
        "exp": int(now + ttl),
        "jti": jti,
        "run": run,
        "sub": sub,
        "aud": audience,
        "iss": issuer,
        "context": context or None,
    }
    claims = {name: value for name, value in claims.items() if value is not None}
    _check_text(claims, MintError)
    payload = json.dumps(claims, separators=(",", ":")).encode()
    if json_object(payload) is None:
        raise MintError("text")
    header = json.dumps({"alg": key.algorithm, "typ": "JWT"}, separators=(",", ":")).encode()
    signing_input = f"{base64url_encode(header)}.{base64url_encode(payload)}"
    return f"{signing_input}.{base64url_encode(sign(key, signing_input.encode()))}"


def _candidates(header: dict[str, Any], keys: Sequence[Key]) -> tuple[list[Key], bool]:
    """Choose the keys to try, and say whether the token's ``kid`` is unknown to keys with kids.

    Keys without a ``kid`` are tried for any that no key has: PEM beside a JWK set.
    """
    if "crit" in header or "b64" in header:
        raise TokenError("critical header")
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise TokenError("algorithm")
    if "kid" in header and not isinstance(kid, str):
        raise TokenError("malformed header")
    if not keys:
        raise TokenError("no keys")
    unknown = False
    if kid is not None:
        named = [key for key in keys if key.kid == kid]
        unknown = not named and any(key.kid is not None for key in keys)
        keys = named or [key for key in keys if key.kid is None]
    candidates = [key for key in keys if key.algorithm == algorithm]
    if not candidates and not unknown:
        raise TokenError("algorithm")
    return candidates, unknown


def _check(claims: dict[str, Any], policy: TokenPolicy, now: float) -> Claims:
    # Compared so that only the policy's own numbers are added up: a claim may be any integer.
    exp = _number(claims, "exp")
    if exp is None:
        raise TokenError("no exp")
    if exp <= now - policy.leeway:
        raise TokenError("expired")
    if exp > now + policy.max_ttl + policy.leeway:
        raise TokenError("exp too far")
    for name, reason in (("nbf", "not yet valid"), ("iat", "issued in the future")):
        since = _number(claims, name)
        if since is not None and since > now + policy.leeway:
            raise TokenError(reason)
    if policy.issuer is not None and claims.get("iss") != policy.issuer:
        raise TokenError("iss")
    if policy.audience is not None and not _is_for(policy.audience, claims.get("aud")):
        raise TokenError("aud")
    _check_text(claims, TokenError)
    context = claims.get("context", False)
    if not isinstance(context, bool):
        raise TokenError("context")
    return Claims(claims.get("sub"), claims.get("run"), claims.get("jti"), float(exp), context)


def _number(claims: dict[str, Any], name: str) -> float | None:
    """Return a NumericDate (RFC 7519 section 2) or None when the claim is not there."""
    if name not in claims:
        return None
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenError(name)
    return value


def _is_for(audience: str, aud: object) -> bool:
    """Say whether ``aud`` names us: a string, or an array with us in it (section 4.1.3)."""
    return audience in aud if isinstance(aud, list) else audience == aud


def _check_text(claims: dict[str, Any], error: type[TokenError | MintError]) -> None:
    for name in ("sub", "jti"):
        value = claims.get(name, "-")
        if not isinstance(value, str) or not 1 <= len(value) <= MAX_TEXT:
            raise error(name)
    run = claims.get("run", "-")
    if not isinstance(run, str) or not valid_id(run):
        raise error("run")

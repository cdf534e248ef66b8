"""Signatures: what RFC 7515 calls JWS, for keys that are pinned to one algorithm each.

Invariant: the algorithm is the key's; nothing here can be told by a token to use another one
(RFC 8725 section 3.1). Every value has one spelling: no padding, no spare bits.

Refuses to know claims, and where keys come from. The only importer of PyJWT, and a late one: PyJWT
imports ``cryptography`` as it loads (0.13 s), which a daemon with an HMAC secret or without
authentication never needs. HMAC is therefore the standard library's.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from jwt.algorithms import Algorithm

HMAC_DIGESTS = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}
"""The HMAC algorithms, which a key cannot imply and a user has to name, and their hashes."""

# "kty" -> the PyJWT algorithm that reads such a JWK, whatever its curve or hash.
_JWK_READERS = {"OKP": "EdDSA", "EC": "ES256", "RSA": "RS256"}

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Key:
    """A verification key and the one algorithm it is used with.

    ``kid`` is its name in a JWK, if it has one. ``material`` is a public key object of
    ``cryptography``, or the bytes of an HMAC secret.
    """

    kid: str | None
    algorithm: str
    material: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that mints, and its algorithm."""

    algorithm: str
    material: Any = field(repr=False)


def signed_by(key: Key, signing_input: bytes, signature: bytes) -> bool:
    """Say whether ``signature`` over ``signing_input`` is the key's (RFC 7515 section 5.2)."""
    if key.algorithm in HMAC_DIGESTS:
        digest = hmac.digest(key.material, signing_input, HMAC_DIGESTS[key.algorithm])
        return hmac.compare_digest(digest, signature)
    return _primitive(key.algorithm).verify(signing_input, key.material, signature)


def sign(key: SigningKey, signing_input: bytes) -> bytes:
    """Return the signature over ``signing_input`` (RFC 7515 section 5.1)."""
    if key.algorithm in HMAC_DIGESTS:
        return hmac.digest(key.material, signing_input, HMAC_DIGESTS[key.algorithm])
    return _primitive(key.algorithm).sign(signing_input, key.material)


def public_key_of(jwk: dict[str, Any]) -> object:
    """Return the key in a public OKP, EC or RSA JWK; None when its members do not make one."""
    reader = _JWK_READERS.get(jwk.get("kty", ""))
    if reader is None:
        return None
    from cryptography.exceptions import UnsupportedAlgorithm
    from jwt.exceptions import InvalidKeyError

    try:
        return _primitive(reader).from_jwk(jwk)
    except (InvalidKeyError, ValueError, TypeError, UnsupportedAlgorithm):
        return None


def base64url_decode(text: str) -> bytes | None:
    """Decode what RFC 7515 section 2 calls base64url: no padding, one spelling per value.

    None for anything else, so that no other spelling of a valid token is valid.
    """
    if not _BASE64URL.fullmatch(text):
        return None
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        return None
    return data if base64url_encode(data) == text else None


def base64url_encode(data: bytes) -> str:
    """Encode as RFC 7515 section 2 says: URL-safe alphabet, no padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def json_object(data: bytes) -> dict[str, Any] | None:
    """Decode a JSON object in UTF-8; None for anything else.

    Stricter than ``json``: no NaN, no number beyond a float, no lone surrogate. None and not the
    error, because a decode error may carry the document.
    """
    try:
        value = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _primitive(algorithm: str) -> Algorithm:
    import jwt

    return jwt.get_algorithm_by_name("EdDSA" if algorithm == "Ed25519" else algorithm)

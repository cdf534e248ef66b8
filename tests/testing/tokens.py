"""Verbs about keys and tokens: pairs of every kind, and tokens with any defect.

Signing goes through PyJWT's JWS layer, which takes the payload as bytes and the header as given,
so that a test can say what no honest issuer would. Nothing here is imported from agentd: these
verbs are the other side of the wire.
"""

import functools
import json
import secrets
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import EllipsisType
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from jwt.warnings import InsecureKeyLengthWarning

KINDS = {
    "EdDSA": "ed25519",
    "ES256": "p256",
    "ES384": "p384",
    "ES512": "p521",
    "RS256": "rsa",
    "PS256": "rsa",
}
"""JWS algorithm -> the kind of key :func:`private_key` makes for it."""

CURVES: dict[str, ec.EllipticCurve] = {
    "p256": ec.SECP256R1(),
    "p384": ec.SECP384R1(),
    "p521": ec.SECP521R1(),
    "secp256k1": ec.SECP256K1(),
}


PrivateKey = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)
PublicKey = (
    rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey
)


@functools.cache
def private_key(kind: str, which: int = 0) -> PrivateKey:  # a cache key
    """The test run's own private key of a kind; another ``which`` is another key."""
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind == "ed448":
        return ed448.Ed448PrivateKey.generate()
    if kind in CURVES:
        return ec.generate_private_key(CURVES[kind])
    return rsa.generate_private_key(65537, {"rsa": 2048, "rsa1024": 1024}[kind])


def public_key(kind: str, which: int = 0) -> PublicKey:
    return private_key(kind, which).public_key()


def private_pem(kind: str, which: int = 0) -> bytes:
    key = private_key(kind, which)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(kind: str, which: int = 0) -> bytes:
    return public_key(kind, which).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def public_jwk(kind: str, which: int = 0, **members: object) -> dict[str, Any]:
    """The public JWK of a key, with ``members`` (``kid``, ``alg``, ``use`` ...) put into it."""
    return {**_jwk(public_key(kind, which)), **members}


def private_jwk(kind: str, which: int = 0, **members: object) -> dict[str, Any]:
    return {**_jwk(private_key(kind, which)), **members}


def _jwk(key: PrivateKey | PublicKey) -> dict[str, Any]:
    if isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey):
        name = "RS256"
    elif isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        name = "ES256"
    else:
        name = "EdDSA"
    jwk: dict[str, Any] = jwt.get_algorithm_by_name(name).to_jwk(key, as_dict=True)
    jwk.pop("key_ops", None)
    return jwk


def jwks(*entries: object) -> bytes:
    return json.dumps({"keys": entries}).encode()


def ed25519_pair(directory: str | Path, name: str = "key") -> tuple[Path, Path]:
    """Write a new Ed25519 pair; return the paths of the private and the public PEM file."""
    key = ed25519.Ed25519PrivateKey.generate()
    private = Path(directory, f"{name}-private.pem")
    public = Path(directory, f"{name}-public.pem")
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.chmod(0o600)
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def mint_token(
    key: str | Path | bytes,
    *,
    run: str | None = None,
    sub: str | None = None,
    jti: str | EllipsisType | None = ...,
    ttl: float = 60,
    algorithm: str | None = None,
    headers: Mapping[str, object] | None = None,
    payload: bytes | None = None,
    **claims: object,
) -> str:
    """Sign a token with a private key: a path, or the PEM or HMAC secret itself as bytes.

    ``exp`` is ``ttl`` seconds from now and ``jti`` is random unless given. A claim given as None is
    left out, ``exp=None`` too; any other value goes in as it is. ``payload`` replaces all claims
    with bytes of any kind; ``headers`` are added to the JOSE header.
    """
    data = key if isinstance(key, bytes) else Path(key).read_bytes()
    if payload is None:
        body: dict[str, object] = {
            "iat": int(time.time()),
            "exp": int(time.time() + ttl),
            "jti": secrets.token_urlsafe(12) if jti is ... else jti,
            "run": run,
            "sub": sub,
            **claims,
        }
        payload = json.dumps({k: v for k, v in body.items() if v is not None}).encode()
    signer: Any = data
    if algorithm is None or not algorithm.startswith("HS"):
        signer = load_pem_private_key(data, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureKeyLengthWarning)
        return jwt.PyJWS().encode(
            payload, signer, algorithm or _natural(signer), dict(headers or {})
        )


def _natural(key: PrivateKey) -> str:
    if isinstance(key, rsa.RSAPrivateKey):
        return "RS256"
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return {256: "ES256", 384: "ES384", 521: "ES512"}[key.key_size]
    return "EdDSA"

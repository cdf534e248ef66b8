"""Where keys come from: files, a JWKS URL, and the making of a pair.

Invariant: the ring never becomes worse by an attempt to make it better: what cannot be read or
fetched leaves the keys that were there. One fetch at a time, seldom, bounded in size and time, and
no token can cause more of them.

Refuses to know what a key or a token must look like (:mod:`agentd.sansio.tokens`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import time
from typing import TYPE_CHECKING

import trio

from agentd.jwks import FetchError, check_url, download, printable
from agentd.sansio import tokens
from agentd.sansio.tokens import Claims, Key, KeyFormatError, TokenPolicy, UnknownKeyID

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_SIZE = 1024 * 1024
"""Bytes a key file may have."""

FRESH = 600.0
"""Seconds after which fetched keys are fetched again."""

RETRY = 10.0
"""Seconds from one fetch to the next, whatever asks for it."""

_WARN_EVERY = 60.0

logger = logging.getLogger(__name__)


class KeyFileError(KeyFormatError):
    """A key file cannot be read, or a pair cannot be written."""


class KeyRing:
    """The keys tokens are checked with.

    ``files`` are paths of keys, ``jwks_url`` where more are published. ``fetch_timeout`` is in
    seconds and for a whole fetch.
    """

    def __init__(
        self,
        files: Sequence[str],
        *,
        algorithm: str | None = None,
        jwks_url: str | None = None,
        policy: TokenPolicy,
        fetch_timeout: float = 5,
    ) -> None:
        self._files = tuple(files)
        self._algorithm = algorithm
        self._url = jwks_url
        self._policy = policy
        self._fetch_timeout = fetch_timeout
        self._read: list[Key] = []
        self._fetched: list[Key] = []
        self._fetched_at = self._tried_at = self._warned_at = -math.inf
        self._fetching = trio.Lock()
        # A fetch that was given up keeps its thread until its socket times out; there is only one.
        self._threads = trio.CapacityLimiter(1)

    def load(self) -> None:
        """Read the key files. Raises KeyFormatError that names the file or setting at fault."""
        if self._url is not None:
            check_url(self._url, self._algorithm)
        self._read = [key for path in self._files for key in _read_keys(path, self._algorithm)]

    def reload(self) -> None:
        """Read the key files again, and have the URL fetched again when it is next needed.

        A file that cannot be used is logged, and the keys stay as they were.
        """
        self._fetched_at = self._tried_at = -math.inf
        try:
            self.load()
        except KeyFormatError as error:
            logger.error("%s; the old keys stay", error)  # noqa: TRY400  # the trace says no more

    async def verify(self, token: str) -> Claims:
        """Check a token with every key there is, fetching keys when they are old or one is missing.

        Raises TokenError.
        """
        if self._url is None:
            return self._verify(token)
        # With keys at hand only one waits for fresher ones, the others go on with those.
        stale = trio.current_time() - self._fetched_at > FRESH
        if stale and not (self._fetched and self._fetching.locked()):
            await self._fetch(self._url)
        with contextlib.suppress(UnknownKeyID):
            return self._verify(token)
        await self._fetch(self._url)
        return self._verify(token)

    def _verify(self, token: str) -> Claims:
        return tokens.verify(token, [*self._read, *self._fetched], self._policy, time.time())

    async def _fetch(self, url: str) -> None:
        """Fetch the keys, unless that was tried a moment ago, as by whom we waited for here."""
        async with self._fetching:
            before, self._tried_at = self._tried_at, trio.current_time()
            if self._tried_at - before < RETRY:
                self._tried_at = before
                return
            try:
                with trio.fail_after(self._fetch_timeout):
                    data = await trio.to_thread.run_sync(
                        download,
                        url,
                        self._fetch_timeout,
                        abandon_on_cancel=True,
                        limiter=self._threads,
                    )
                self._fetched = tokens.parse_keys(data, algorithm=self._algorithm)
            except trio.Cancelled:
                self._tried_at = before  # those who wait for this fetch make their own
                raise
            except trio.TooSlowError:
                self._warn(url, "timed out")
            except FetchError as error:
                self._warn(url, str(error))
            except KeyFormatError as error:
                self._warn(url, error.reason)
            else:
                self._fetched_at = trio.current_time()

    def _warn(self, url: str, reason: str) -> None:
        if trio.current_time() - self._warned_at >= _WARN_EVERY:
            self._warned_at = trio.current_time()
            logger.warning("cannot get keys from %s: %s", printable(url), reason)


def mint_from_file(
    path: str,
    *,
    ttl: float = 60,
    run: str | None = None,
    sub: str | None = None,
    context: bool = False,
    audience: str | None = None,
    issuer: str | None = None,
    algorithm: str | None = None,
) -> str:
    """Sign a token with the private key in a file, good for ``ttl`` seconds and for one use.

    Raises KeyFormatError that names the file, or MintError.
    """
    data = _read_file(path)
    try:
        return tokens.mint(
            data,
            now=time.time(),
            ttl=ttl,
            jti=secrets.token_urlsafe(16),
            run=run,
            sub=sub,
            context=context,
            audience=audience,
            issuer=issuer,
            algorithm=algorithm,
        )
    except KeyFormatError as error:
        raise KeyFormatError(error.reason, f"key file {path}") from None


def generate_pair(directory: str) -> tuple[str, str]:
    """Make an Ed25519 pair in ``directory``; return the paths of the private and the public key.

    ``agentd-private.pem`` (0600, PKCS #8) and ``agentd-public.pem`` (0644, RFC 8410). The directory
    is made when it is missing; no file is ever replaced. Raises KeyFileError.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = Ed25519PrivateKey.generate()
    private = os.path.join(directory, "agentd-private.pem")
    public = os.path.join(directory, "agentd-public.pem")
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise KeyFileError(_why(error), f"directory {directory}") from None
    _write_new(private, 0o600, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    try:
        _write_new(
            public,
            0o644,
            key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        )
    except KeyFileError:
        os.unlink(private)  # half a pair is no use, and would be in the way next time
        raise
    return private, public


def _read_keys(path: str, algorithm: str | None) -> list[Key]:
    data = _read_file(path)
    try:
        return tokens.parse_keys(data, algorithm=algorithm)
    except KeyFormatError as error:
        raise KeyFormatError(error.reason, f"key file {path}") from None


def _read_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_SIZE + 1)
    except (OSError, ValueError) as error:
        raise KeyFileError(_why(error), f"key file {path}") from None
    if len(data) > MAX_SIZE:
        raise KeyFileError("it is larger than 1 MiB", f"key file {path}")
    return data


def _write_new(path: str, mode: int, data: bytes) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
    except OSError as error:
        raise KeyFileError(_why(error), f"key file {path}") from None


def _why(error: Exception) -> str:
    """Say what the system said, without the path it was about: that is named already."""
    return getattr(error, "strerror", None) or type(error).__name__

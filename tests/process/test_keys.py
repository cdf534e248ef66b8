"""Keys come from files and from a real HTTP server, and what fails leaves those that were there."""

import json
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jwt
import pytest
import trio
import trio.testing
from testing.publisher import Publisher, publisher
from testing.tokens import ed25519_pair, jwks, mint_token, private_pem, public_jwk, public_pem

from agentd.keys import MAX_SIZE, KeyFileError, KeyRing, generate_pair, mint_from_file
from agentd.sansio.tokens import (
    KeyFormatError,
    MintError,
    TokenError,
    TokenPolicy,
    UnknownKeyID,
)

TOKEN_A = mint_token(private_pem("ed25519"), headers={"kid": "a"}, ttl=3000)
TOKEN_B = mint_token(private_pem("ed25519", which=1), headers={"kid": "b"}, ttl=3000)
KEY_A = public_jwk("ed25519", kid="a")
KEY_B = public_jwk("ed25519", which=1, kid="b")


@pytest.fixture
def issuer() -> Iterator[Publisher]:
    with publisher(jwks(KEY_A)) as it:
        yield it


def ring(*files: Path, url: str | None = None, algorithm: str | None = None) -> KeyRing:
    it = KeyRing(
        [str(path) for path in files], algorithm=algorithm, jwks_url=url, policy=TokenPolicy()
    )
    it.load()
    return it


async def refusal(keys: KeyRing, token: str) -> str:
    with pytest.raises(TokenError) as caught:
        await keys.verify(token)
    assert token not in repr((caught.value.args, caught.value.__context__))
    return caught.value.reason


# --- files


async def test_files(tmp_path: Path) -> None:
    """A token is accepted under any of the key files."""
    first, second = ed25519_pair(tmp_path, "one"), ed25519_pair(tmp_path, "two")
    keys = ring(first[1], second[1])
    assert (await keys.verify(mint_token(first[0], run="r1"))).run == "r1"
    assert (await keys.verify(mint_token(second[0], run="r2"))).run == "r2"
    assert await refusal(keys, mint_token(private_pem("ed25519"))) == "signature"


async def test_secret_file(tmp_path: Path) -> None:
    """With an HMAC algorithm a key file is the secret, with or without a newline at its end."""
    path = tmp_path / "secret"
    path.write_bytes(b"s" * 40 + b"\n")
    keys = ring(path, algorithm="HS256")
    assert (await keys.verify(mint_token(b"s" * 40, algorithm="HS256", sub="me"))).sub == "me"


async def test_policy(tmp_path: Path) -> None:
    """The policy that the ring was given is the one that tokens are held to."""
    private, public = ed25519_pair(tmp_path)
    keys = KeyRing([str(public)], policy=TokenPolicy(audience="agentd", max_ttl=30, leeway=0))
    keys.load()
    assert await keys.verify(mint_token(private, aud="agentd", ttl=20)) is not None
    assert await refusal(keys, mint_token(private, ttl=20)) == "aud"
    assert await refusal(keys, mint_token(private, aud="agentd", ttl=60)) == "exp too far"


async def test_no_files() -> None:
    """A ring without keys accepts nothing."""
    assert await refusal(ring(), TOKEN_A) == "no keys"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "neither a PEM public key nor a JWK"),
        (private_pem("ed25519"), "it holds a private key"),
        (public_pem("rsa1024"), "an RSA key has 2048"),
        (b"c4n4ry" * 10, "an HMAC secret needs --jwt-algorithm HS256"),
        (b"x" * (MAX_SIZE + 1), "it is larger than 1 MiB"),
    ],
    ids=["empty", "private", "weak", "secret", "large"],
)
def test_bad_file(tmp_path: Path, content: bytes, reason: str) -> None:
    """A file that holds no usable key is refused by its path and the reason, not its content."""
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    with pytest.raises(KeyFormatError, match=reason) as caught:
        ring(path)
    assert f"cannot use key file {path}: " in str(caught.value)
    assert "c4n4ry" not in repr((str(caught.value), caught.value.__context__))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
)
def test_unreadable_file(tmp_path: Path, make: Callable[[Path], object], reason: str) -> None:
    """A file that cannot be read is refused by its path and what the system says."""
    path = tmp_path / "key.pem"
    make(path)
    with pytest.raises(KeyFormatError, match=reason) as caught:
        ring(path)
    assert str(path) in str(caught.value)


def test_path_that_is_none() -> None:
    """A path that no file can have is refused like a file that cannot be read."""
    with pytest.raises(KeyFileError, match="ValueError"):
        KeyRing(["a\0b"], policy=TokenPolicy()).load()


def test_contradicting_algorithm(tmp_path: Path) -> None:
    """An algorithm that is not the key's is refused with the file's path."""
    _, public = ed25519_pair(tmp_path)
    with pytest.raises(KeyFormatError, match=str(public)):
        ring(public, algorithm="ES256")


def test_bad_url() -> None:
    """A URL that no keys can come from is refused when the keys are loaded."""
    with pytest.raises(KeyFormatError, match="--jwt-jwks-url"):
        ring(url="file:///etc/passwd")
    with pytest.raises(KeyFormatError, match="--jwt-jwks-url"):
        ring(url="https://issuer.example/keys", algorithm="HS256")


# --- reload


async def test_reload(tmp_path: Path) -> None:
    """After a reload the keys are those that the files hold now."""
    private, public = ed25519_pair(tmp_path)
    before = mint_token(private)
    keys = ring(public)
    await keys.verify(before)
    private, public = ed25519_pair(tmp_path)
    after = mint_token(private)
    assert await refusal(keys, after) == "signature"
    keys.reload()
    await keys.verify(after)
    assert await refusal(keys, before) == "signature"


async def test_bad_reload(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When one of the files went bad all old keys stay, and the log says which file it was."""
    (one, public_one), (two, public_two) = ed25519_pair(tmp_path, "1"), ed25519_pair(tmp_path, "2")
    keys = ring(public_one, public_two)
    token_one, token_two = mint_token(one), mint_token(two)
    ed25519_pair(tmp_path, "1")
    public_two.write_bytes(private_pem("ed25519"))
    keys.reload()
    await keys.verify(token_one)
    await keys.verify(token_two)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert str(public_two) in record.getMessage()
    assert "the old keys stay" in record.getMessage()
    assert private_pem("ed25519").decode()[40:80] not in caplog.text
    public_two.unlink()
    keys.reload()
    await keys.verify(token_two)


# --- the URL


async def test_url(issuer: Publisher, mock_clock: trio.testing.MockClock) -> None:
    """Keys are fetched when the first token comes, and then not again for ten minutes."""
    keys = ring(url=issuer.url)
    assert issuer.paths == []
    for _ in range(3):
        await keys.verify(TOKEN_A)
    mock_clock.jump(599)
    await keys.verify(TOKEN_A)
    assert len(issuer.paths) == 1
    mock_clock.jump(2)
    await keys.verify(TOKEN_A)
    assert len(issuer.paths) == 2


async def test_url_beside_files(issuer: Publisher, tmp_path: Path) -> None:
    """Keys of files and of the URL are good side by side, also while the URL gives none."""
    private, public = ed25519_pair(tmp_path)
    keys = ring(public, url=issuer.url)
    await keys.verify(mint_token(private, headers={"kid": "mine"}))
    await keys.verify(TOKEN_A)
    issuer.status = 500
    await ring(public, url=issuer.url).verify(mint_token(private))


async def test_url_algorithm(issuer: Publisher) -> None:
    """An algorithm that was named holds for fetched keys as well."""
    issuer.body = jwks(public_jwk("rsa"), KEY_A)
    keys = ring(url=issuer.url, algorithm="PS256")
    await keys.verify(mint_token(private_pem("rsa"), algorithm="PS256"))
    assert await refusal(keys, mint_token(private_pem("rsa"), algorithm="RS256")) == "algorithm"
    assert await refusal(keys, mint_token(private_pem("ed25519"))) == "algorithm"


async def test_rotation(issuer: Publisher, mock_clock: trio.testing.MockClock) -> None:
    """A token with a new kid has the keys fetched again at once; a withdrawn key is then gone."""
    keys = ring(url=issuer.url)
    await keys.verify(TOKEN_A)
    issuer.body = jwks(KEY_B)
    mock_clock.jump(11)
    await keys.verify(TOKEN_B)
    assert len(issuer.paths) == 2
    assert await refusal(keys, TOKEN_A) == "unknown kid"


async def test_unknown_kid_is_rate_limited(
    issuer: Publisher, mock_clock: trio.testing.MockClock
) -> None:
    """However many tokens name keys that nobody has, the issuer is asked once in ten seconds."""
    keys = ring(url=issuer.url)
    for _ in range(20):
        assert await refusal(keys, TOKEN_B) == "unknown kid"
    assert len(issuer.paths) == 1
    mock_clock.jump(9.9)
    assert await refusal(keys, TOKEN_B) == "unknown kid"
    assert len(issuer.paths) == 1
    mock_clock.jump(0.2)
    for _ in range(20):
        assert await refusal(keys, TOKEN_B) == "unknown kid"
    assert len(issuer.paths) == 2
    await keys.verify(TOKEN_A)


async def test_other_bad_tokens_cause_no_fetch(
    issuer: Publisher, mock_clock: trio.testing.MockClock
) -> None:
    """A token that fails for another reason than its kid does not trouble the issuer."""
    keys = ring(url=issuer.url)
    await keys.verify(TOKEN_A)
    mock_clock.jump(60)
    forged = mint_token(private_pem("ed25519", which=2), headers={"kid": "a"})
    for token, reason in (
        (forged, "signature"),
        ("junk", "malformed"),
        (mint_token(private_pem("ed25519"), headers={"kid": "a"}, ttl=-60), "expired"),
        (mint_token(private_pem("rsa"), headers={"kid": "a"}), "algorithm"),
    ):
        assert await refusal(keys, token) == reason
    assert len(issuer.paths) == 1


async def test_one_fetch_for_all(issuer: Publisher) -> None:
    """Tokens that come while the first keys are fetched wait for that fetch and share it."""
    keys = ring(url=issuer.url)
    issuer.open.clear()
    accepted = []

    async def verify(token: str) -> None:
        accepted.append(await keys.verify(token))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(verify, TOKEN_A)
        await trio.to_thread.run_sync(issuer.asked.acquire)
        await trio.testing.wait_all_tasks_blocked()
        assert accepted == []
        issuer.open.set()
    assert len(accepted) == 10
    assert len(issuer.paths) == 1


async def test_others_go_on_during_a_refresh(
    issuer: Publisher, mock_clock: trio.testing.MockClock
) -> None:
    """While old keys are fetched afresh, tokens are checked with them and do not wait."""
    keys = ring(url=issuer.url)
    await keys.verify(TOKEN_A)
    mock_clock.jump(601)
    await trio.to_thread.run_sync(issuer.asked.acquire)
    issuer.open.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keys.verify, TOKEN_A)
        await trio.to_thread.run_sync(issuer.asked.acquire)
        await keys.verify(TOKEN_A)
        issuer.open.set()
    assert len(issuer.paths) == 2


async def test_cancelled_fetch(issuer: Publisher) -> None:
    """When the client that caused a fetch leaves, another one that waits gets its keys."""
    keys = ring(url=issuer.url)
    issuer.open.clear()
    async with trio.open_nursery() as nursery:
        first = trio.CancelScope()

        async def leave() -> None:
            with first:
                await keys.verify(TOKEN_A)

        nursery.start_soon(leave)
        await trio.to_thread.run_sync(issuer.asked.acquire)
        nursery.start_soon(keys.verify, TOKEN_A)
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        issuer.open.set()
    assert first.cancelled_caught
    assert len(issuer.paths) == 2


async def test_failed_refresh(
    issuer: Publisher, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """When fetching again fails the keys stay; it is tried every ten seconds, told every minute."""
    keys = ring(url=issuer.url)
    await keys.verify(TOKEN_A)
    mock_clock.jump(601)
    issuer.status = 503
    for _ in range(12):
        await keys.verify(TOKEN_A)
        await keys.verify(TOKEN_A)
        mock_clock.jump(10)
    assert len(issuer.paths) == 13
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert caplog.messages[0] == f"cannot get keys from {issuer.url}: status 503"
    issuer.status, issuer.body = 200, jwks(KEY_B)
    await keys.verify(TOKEN_B)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "neither a PEM public key"),
        (b"<html>c4n4ry</html>", "neither a PEM public key"),
        (b'{"keys":[]}', "the set is empty"),
        (b'{"keys":[{"kty":"oct","k":"c4n4ry"}]}', "symmetric key"),
        (json.dumps({"d": "c4n4ry", **KEY_A}).encode(), "private key"),
        (b"x" * (MAX_SIZE + 1), "larger than 1 MiB"),
    ],
    ids=["empty", "page", "no keys", "symmetric", "private", "large"],
)
async def test_bad_keys_are_not_taken(
    issuer: Publisher,
    mock_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    body: bytes,
    reason: str,
) -> None:
    """An answer that holds no usable key leaves the old ones, and is not shown in the log."""
    keys = ring(url=issuer.url)
    await keys.verify(TOKEN_A)
    issuer.body = body
    mock_clock.jump(601)
    await keys.verify(TOKEN_A)
    assert reason in caplog.text
    assert "c4n4ry" not in caplog.text


async def test_no_keys_at_all(issuer: Publisher, caplog: pytest.LogCaptureFixture) -> None:
    """Without a single key a token is refused, and the log names the URL without its secrets."""
    issuer.status = 401
    keys = ring(url=issuer.url.replace("http://", "http://user:c4n4ry@") + "?key=c4n4ry#c4n4ry")
    for _ in range(5):
        assert await refusal(keys, TOKEN_A) == "no keys"
    assert len(issuer.paths) == 1
    assert caplog.messages == [f"cannot get keys from {issuer.url}: status 401"]


async def test_slow_issuer(issuer: Publisher, caplog: pytest.LogCaptureFixture) -> None:
    """A fetch that takes too long is given up."""
    keys = KeyRing([], jwks_url=issuer.url, policy=TokenPolicy(), fetch_timeout=0.2)
    keys.load()
    issuer.open.clear()
    with trio.fail_after(20):
        assert await refusal(keys, TOKEN_A) == "no keys"
    assert caplog.messages == [f"cannot get keys from {issuer.url}: timed out"]


async def test_reload_fetches_again(issuer: Publisher) -> None:
    """After a reload the next token has the URL fetched, however fresh its keys were."""
    keys = ring(url=issuer.url)
    await keys.verify(TOKEN_A)
    issuer.body = jwks(KEY_B)
    keys.reload()
    await keys.verify(TOKEN_B)
    assert len(issuer.paths) == 2
    issuer.status = 500
    keys.reload()
    await keys.verify(TOKEN_B)


async def test_unknown_kid_without_url(tmp_path: Path) -> None:
    """Without a URL an unknown kid is just that."""
    path = tmp_path / "keys.json"
    path.write_bytes(jwks(KEY_A))
    with pytest.raises(UnknownKeyID):
        await ring(path).verify(TOKEN_B)


# --- making and minting


def test_generate_pair(tmp_path: Path) -> None:
    """A pair is made: the private key for its owner only, the public one for all."""
    old = os.umask(0o077)
    try:
        private, public = generate_pair(str(tmp_path / "new" / "keys"))
    finally:
        os.umask(old)
    assert private == str(tmp_path / "new" / "keys" / "agentd-private.pem")
    assert public == str(tmp_path / "new" / "keys" / "agentd-public.pem")
    assert stat.S_IMODE(os.stat(private).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(public).st_mode) == 0o644
    token = mint_token(private)
    assert jwt.decode(token, Path(public).read_bytes(), ["EdDSA"])["jti"]
    assert "PRIVATE" not in Path(public).read_text()


@pytest.mark.parametrize("name", ["agentd-private.pem", "agentd-public.pem"])
@pytest.mark.parametrize("target", ["file", "dangling link"])
def test_generate_pair_replaces_nothing(tmp_path: Path, name: str, target: str) -> None:
    """A file that is there already stays as it was, and no half of a pair is left beside it."""
    path = tmp_path / name
    if target == "file":
        path.write_text("precious")
    else:
        path.symlink_to("elsewhere")
    with pytest.raises(KeyFileError, match=f"cannot use key file {path}: File exists"):
        generate_pair(str(tmp_path))
    assert os.listdir(tmp_path) == [name]
    assert path.is_symlink() or path.read_text() == "precious"


def test_generate_pair_without_directory(tmp_path: Path) -> None:
    """A directory that cannot be made is named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyFileError, match=f"directory {tmp_path}/file/keys: Not a directory"):
        generate_pair(str(tmp_path / "file" / "keys"))


async def test_mint_from_file(tmp_path: Path) -> None:
    """A token minted with one half of a pair is accepted under the other, each for one use."""
    private, public = generate_pair(str(tmp_path))
    keys = ring(Path(public))
    one = await keys.verify(mint_from_file(private, run="r1", sub="me", context=True))
    two = await keys.verify(mint_from_file(private, ttl=600))
    assert (one.run, one.sub, one.context) == ("r1", "me", True)
    assert (two.run, two.sub, two.context) == (None, None, False)
    assert 500 < two.exp - one.exp < 600
    assert one.jti is not None
    assert two.jti is not None
    assert one.jti != two.jti


def test_mint_says_what_was_asked(tmp_path: Path) -> None:
    """Audience and issuer are in the token, and the algorithm is the one that was named."""
    path = tmp_path / "rsa.pem"
    path.write_bytes(private_pem("rsa"))
    token = mint_from_file(str(path), audience="a", issuer="i", algorithm="PS256")
    decoded = jwt.decode(token, public_pem("rsa"), ["PS256"], audience="a", issuer="i")
    assert decoded["exp"] - decoded["iat"] == 60


def test_mint_from_bad_file(tmp_path: Path) -> None:
    """A file that cannot mint is refused by its path, and not shown."""
    path = tmp_path / "key.pem"
    with pytest.raises(KeyFileError, match=f"{path}: No such file"):
        mint_from_file(str(path))
    for content in (b"c4n4ry" * 10, public_pem("ed25519"), private_pem("ed25519")[:-40]):
        path.write_bytes(content)
        with pytest.raises(KeyFormatError, match=str(path)) as caught:
            mint_from_file(str(path))
        assert "c4n4ry" not in repr((str(caught.value), caught.value.__context__))
    path.write_bytes(private_pem("ed25519"))
    with pytest.raises(MintError, match="its run would be refused"):
        mint_from_file(str(path), run="no/run")


def test_import_is_late() -> None:
    """Importing the ring loads neither cryptography nor an HTTP client."""
    script = (
        "import sys, agentd.keys\n"
        "assert not {'jwt', 'cryptography', 'urllib.request'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)

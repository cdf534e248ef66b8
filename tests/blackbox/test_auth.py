"""Who may connect: tokens of every kind and with every defect, before the upgrade.

A refused request starts nothing and learns nothing; a good token without a context is a 404, which
is how most of these tests tell good from bad.
"""

import base64
import hashlib
import hmac
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from testing.commands import Call, agentd_each, complains
from testing.contexts import recording, started, wait_waiting
from testing.daemon import Daemon, read_all, serving, wait_for
from testing.exchange import Answer, handshake, knock
from testing.publisher import publisher
from testing.tokens import (
    KINDS,
    ed25519_pair,
    jwks,
    mint_token,
    private_jwk,
    private_pem,
    public_jwk,
    public_pem,
)

GOOD, BAD = 404, 401
NOBODY_WAITS = ("--context-wait", "0", "--log-level", "debug")
ALGORITHMS = ["EdDSA", "ES256", "RS256", "PS256"]
SECRET = b"0123456789abcdef0123456789abcdef"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def handmade(
    header: Mapping[str, object], sign: Callable[[bytes], bytes] = lambda _: b"", **claims: object
) -> str:
    """A token no library would make."""
    body = {"exp": int(time.time()) + 60, **claims}
    signed = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(body).encode())}"
    return f"{signed}.{b64(sign(signed.encode()))}"


def come(daemon: Daemon, token: str | None, target: str = "/") -> Answer:
    """Knock with a token in the Authorization header, or with none."""
    headers = () if token is None else (f"Authorization: Bearer {token}",)
    return knock(daemon.port, handshake(target, *headers))


@contextmanager
def guarded(folder: Path, *options: str, command: tuple[str, ...] = ("cat",)) -> Iterator[Daemon]:
    """A daemon with nothing to run and whatever keys the options name."""
    with serving(folder, *command, options=(*NOBODY_WAITS, *options)) as daemon:
        yield daemon


class Door:
    """A daemon with one Ed25519 key, and a minter for it."""

    def __init__(self, daemon: Daemon, private: Path, public: Path, starts: Path) -> None:
        self.daemon = daemon
        self.private = private
        self.public = public
        self.starts = starts
        self.minted: list[str] = []

    def mint(self, **defects: object) -> str:
        token = mint_token(self.private, **defects)  # type: ignore[arg-type]  # any claim at all
        self.minted.append(token)
        return token

    def says(self, **defects: object) -> int:
        return come(self.daemon, self.mint(**defects)).status


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """The daemon most tests share; its log never holds a token, and no refusal starts a run."""
    folder = tmp_path_factory.mktemp("door")
    private, public = ed25519_pair(folder)
    command, starts = recording(folder)
    with guarded(folder, "--jwt-key", str(public), command=command) as daemon:
        door = Door(daemon, private, public, starts)
        yield door
        log = "\n".join(daemon.raw_log)
        assert "token refused" in log
        for token in door.minted:
            assert not [part for part in token.split(".")[1:] if part and part in log]
        assert not [entry for entry in daemon.log if entry["level"] == "error"]


# Keys.


def test_every_algorithm_from_every_form_of_key(tmp_path: Path) -> None:
    """EdDSA, ES256, RS256 and PS256 keys as PEM, JWK and JWKS files; strangers' keys never."""
    options, keys = [], []
    for which, form in enumerate(("pem", "jwk", "jwks")):
        for algorithm in ALGORITHMS:
            # An RSA key as PEM is good for both of its algorithms, so one is enough.
            number = 0 if form == "pem" else which
            kid = f"{form}-{algorithm}"
            jwk = public_jwk(KINDS[algorithm], number, kid=kid, alg=algorithm, use="sig")
            data = {
                "pem": public_pem(KINDS[algorithm], number),
                "jwk": json.dumps(jwk).encode(),
                "jwks": jwks({"kty": "oct", "k": "AAAA", "use": "enc"}, jwk),
            }[form]
            path = tmp_path / f"{kid}.{form}"
            path.write_bytes(data)
            options += ["--jwt-key", str(path)]
            headers = {} if form == "pem" else {"kid": kid}
            keys.append((private_pem(KINDS[algorithm], number), algorithm, headers))
    with guarded(tmp_path, *options) as daemon:
        for private, algorithm, headers in keys:
            token = mint_token(private, algorithm=algorithm, headers=headers)
            assert come(daemon, token).status == GOOD, (algorithm, headers)
            stranger = private_pem(KINDS[algorithm], 9)
            token = mint_token(stranger, algorithm=algorithm, headers=headers)
            assert come(daemon, token).status == BAD, (algorithm, headers)
        # A JWK that says PS256 is no key for RS256, though the numbers fit.
        token = mint_token(private_pem("rsa", 2), algorithm="RS256", headers={"kid": "jwks-PS256"})
        assert come(daemon, token).status == BAD
        assert not [entry for entry in daemon.log if entry["level"] in ("warning", "error")]


def test_keys_from_a_url(tmp_path: Path) -> None:
    """Keys are fetched when first needed, kept, and fetched again, seldom, for an unknown kid."""

    def token(which: int, kid: str) -> str:
        return mint_token(private_pem("ed25519", which), headers={"kid": kid})

    with (
        publisher(jwks(public_jwk("ed25519", 1, kid="one"))) as issuer,
        guarded(tmp_path, "--jwt-jwks-url", issuer.url) as daemon,
    ):
        assert issuer.paths == []
        for _ in range(5):
            assert come(daemon, token(1, "one")).status == GOOD
        assert len(issuer.paths) == 1
        assert come(daemon, token(2, "one")).status == BAD
        for number in range(30):
            assert come(daemon, token(2, f"nobody's-{number}")).status == BAD
        assert len(issuer.paths) <= 2, "a flood of unknown kids is no flood of fetches"

        issuer.body = jwks(public_jwk("ed25519", 2, kid="two"))
        wait_for(lambda: come(daemon, token(2, "two")).status == GOOD, "the new key fetched")
        assert len(issuer.paths) <= 4
        assert come(daemon, token(1, "one")).status == BAD, "the old key is withdrawn"

        issuer.status, issuer.body = 500, b"broken"
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: come(daemon, token(2, "two")).status == GOOD, "the keys at hand go on")
        assert not [entry for entry in daemon.log if entry["level"] == "error"]


def test_an_issuer_that_is_down_lets_nobody_in_and_ends_nothing(tmp_path: Path) -> None:
    """Without keys every token is refused, health goes on, and the log says why without the URL's
    secrets."""
    url = "http://user:pa55word@127.0.0.1:9/keys?key=pa55word"
    with guarded(tmp_path, "--jwt-jwks-url", url) as daemon:
        assert come(daemon, mint_token(private_pem("ed25519"))).status == BAD
        assert daemon.get("/healthz")[0] == 200
        daemon.wait_log("cannot get keys")
        assert "pa55word" not in "\n".join(daemon.raw_log)


def test_hmac_only_where_it_is_asked_for(tmp_path: Path) -> None:
    """A secret of 32 bytes with --jwt-algorithm HS256, and then that algorithm alone."""
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    with guarded(tmp_path, "--jwt-key", str(path), "--jwt-algorithm", "HS256") as daemon:
        assert come(daemon, mint_token(SECRET, algorithm="HS256")).status == GOOD
        assert come(daemon, mint_token(SECRET, algorithm="HS512")).status == BAD
        assert come(daemon, mint_token(SECRET[:-1], algorithm="HS256")).status == BAD
        empty = handmade(
            {"alg": "HS256"}, lambda data: hmac.new(b"", data, hashlib.sha256).digest()
        )
        assert come(daemon, empty).status == BAD
        assert SECRET.decode() not in "\n".join(daemon.raw_log)


def test_a_key_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    """Exit 78 and one line that names the file and shows nothing of it."""
    files = {
        "garbage": b"hunter2 is no key",
        "empty": b"",
        "secret": SECRET,
        "short": SECRET[:-1],
        "private": private_pem("ed25519"),
        "private-rsa": private_pem("rsa"),
        "private-jwk": json.dumps(private_jwk("ed25519")).encode(),
        "private-jwks": jwks(public_jwk("p256"), private_jwk("p256")),
        "weak-rsa": public_pem("rsa1024"),
        "other-curve": public_pem("secp256k1"),
        "no-keys": jwks(),
        "mismatch": json.dumps(public_jwk("p256", alg="RS256")).encode(),
        "public": public_pem("ed25519"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    algorithms: dict[str, list[str | None]] = {
        "short": ["HS256", "HS384"],
        "secret": [None, "EdDSA"],
        "public": ["ES256", "RS256", "HS256"],
        "missing": [None],
    }
    calls, names = [], []
    for name in [*files, "missing"]:
        for algorithm in algorithms.get(name, [None]):
            words = ["serve", "--listen", "127.0.0.1:0", "--jwt-key", str(tmp_path / name)]
            words += ["--jwt-algorithm", algorithm] if algorithm else []
            calls.append(Call((*words, "--", "true")))
            names.append(str(tmp_path / name))
    done = agentd_each(calls)
    wrong = [complains(each, 78, name) for each, name in zip(done, names, strict=True)]
    assert list(filter(None, wrong)) == []
    said = "".join(each.err for each in done)
    assert "hunter2" not in said
    assert SECRET.decode()[:16] not in said


def test_sighup_reads_the_keys_again(tmp_path: Path) -> None:
    """New keys count, old ones no more; what is bad changes nothing and is logged."""
    path = tmp_path / "key"
    one, two = private_pem("ed25519", 1), private_pem("p256", 2)
    path.write_bytes(public_pem("ed25519", 1))
    with guarded(tmp_path, "--jwt-key", str(path)) as daemon:
        assert come(daemon, mint_token(one)).status == GOOD
        path.write_bytes(public_pem("p256", 2))
        assert come(daemon, mint_token(two)).status == BAD
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: come(daemon, mint_token(two)).status == GOOD, "the new key")
        assert come(daemon, mint_token(one)).status == BAD
        for times, data in enumerate((b"garbage", two, None), 1):
            path.unlink() if data is None else path.write_bytes(data)
            daemon.process.send_signal(signal.SIGHUP)
            wait_for(
                lambda times=times: sum(str(path) in line for line in daemon.raw_log) == times,  # type: ignore[misc]  # mypy does not infer defaults
                "the bad key told",
            )
            assert come(daemon, mint_token(two)).status == GOOD
        assert daemon.stop() == 0


# Where the token is.


def test_the_three_places_of_a_token(door: Door) -> None:
    """In the query, in Authorization, and as a subprotocol beside the real one."""
    port = door.daemon.port
    assert knock(port, handshake(f"/?token={door.mint()}")).status == GOOD
    assert knock(port, handshake(f"/x?run=a&token={quote(door.mint())}")).status == GOOD
    assert knock(port, handshake("/", f"Authorization: bearer {door.mint()}")).status == GOOD
    for protocols in ("agentd.v1, bearer.{}", "bearer.{},agentd.raw", "bearer.{}"):
        request = handshake(protocols=protocols.format(door.mint()))
        assert knock(port, request).status == GOOD
    # Another scheme is the edge's own business.
    request = handshake(f"/?token={door.mint()}", "Authorization: Basic dXNlcjpwYXNz")
    assert knock(port, request).status == GOOD


def test_a_token_in_two_places_is_malformed(door: Door) -> None:
    """Two tokens, even the same one twice, are 400: nobody need choose."""
    token = door.mint(jti=None)
    places = {
        "query": (f"/?token={token}", (), "agentd.v1"),
        "header": ("/", (f"Authorization: Bearer {token}",), "agentd.v1"),
        "protocol": ("/", (), f"agentd.v1, bearer.{token}"),
    }
    for one in places:
        for two in places:
            target, headers, protocols = places[one]
            if one == two == "query":
                target += f"&token={token}"
            elif one == two == "header":
                headers *= 2
            elif one == two == "protocol":
                protocols += f", bearer.{token}"
            else:
                target = max(target, places[two][0], key=len)
                headers = headers or places[two][1]
                protocols = max(protocols, places[two][2], key=len)
            answer = knock(door.daemon.port, handshake(target, *headers, protocols=protocols))
            assert answer.status == 400, (one, two)
            assert token.encode() not in answer.raw


def test_the_subprotocol_with_the_token_is_never_echoed(tmp_path: Path) -> None:
    """The 101 names the real subprotocol, or none."""
    private, public = ed25519_pair(tmp_path)
    with serving(tmp_path, "cat", options=("--jwt-key", str(public))) as daemon:
        for protocols, echoed in (
            ("bearer.{}, agentd.v1", "agentd.v1"),
            ("agentd.raw, bearer.{}", "agentd.raw"),
            ("bearer.{}", None),
        ):
            daemon.submit()
            token = mint_token(private)
            answer = knock(daemon.port, handshake(protocols=protocols.format(token)))
            assert answer.status == 101
            assert answer.headers.get("sec-websocket-protocol") == echoed
            assert token.encode() not in answer.raw


# What the token says.

FINE: dict[str, Callable[[], dict[str, object]]] = {
    "plain": dict,
    "without jti": lambda: {"jti": None},
    "expired within the leeway": lambda: {"ttl": -2},
    "valid within the leeway": lambda: {"nbf": int(time.time()) + 3},
    "issued within the leeway": lambda: {"iat": int(time.time()) + 3},
    "an hour": lambda: {"ttl": 3590},
    "a fraction": lambda: {"exp": time.time() + 30.5},
    "somebody's audience": lambda: {"aud": "anybody", "iss": "anybody"},
    "other claims": lambda: {"name": "Zoë", "roles": ["a"], "sub": "x"},
    "typ": lambda: {"headers": {"typ": "at+jwt"}},
}
FAULTY: dict[str, Callable[[], dict[str, object]]] = {
    "no exp": lambda: {"exp": None},
    "expired": lambda: {"ttl": -10},
    "expired long ago": lambda: {"exp": 1},
    "exp too far": lambda: {"ttl": 3700},
    "exp absurd": lambda: {"exp": 10**23},
    "exp a float too large": lambda: {"payload": b'{"exp": 1e400}'},
    "exp a string": lambda: {"exp": str(int(time.time()) + 60)},
    "exp true": lambda: {"exp": True},
    "exp null": lambda: {"payload": b'{"exp": null}'},
    "exp NaN": lambda: {"payload": b'{"exp": NaN}'},
    "nbf": lambda: {"nbf": int(time.time()) + 60},
    "nbf a string": lambda: {"nbf": "0"},
    "issued in the future": lambda: {"iat": int(time.time()) + 600},
    "jti a number": lambda: {"jti": 1},
    "jti empty": lambda: {"jti": ""},
    "jti long": lambda: {"jti": "j" * 300},
    "sub a list": lambda: {"sub": ["x"]},
    "run a path": lambda: {"run": "../x"},
    "run empty": lambda: {"run": ""},
    "run a number": lambda: {"run": 1},
    "context a string": lambda: {"context": "true"},
    "no claims": lambda: {"payload": b"{}"},
    "claims an array": lambda: {"payload": b"[]"},
    "claims not JSON": lambda: {"payload": b"exp"},
    "claims nested": lambda: {"payload": b'{"exp":' + b"[" * 5000},
    "claims not UTF-8": lambda: {"payload": b'{"exp": 9999999999, "x": "\xff"}'},
    "crit": lambda: {"headers": {"crit": ["exp"]}},
    "crit empty": lambda: {"headers": {"crit": []}},
}  # fmt: skip


@pytest.mark.parametrize("what", FINE)
def test_a_good_token_is_good(door: Door, what: str) -> None:
    """It gets past the door, to where there is no context."""
    assert door.says(**FINE[what]()) == GOOD


@pytest.mark.parametrize("what", FAULTY)
def test_a_faulty_token_is_refused(door: Door, what: str) -> None:
    """Signed with the right key it is still 401."""
    assert door.says(**FAULTY[what]()) == BAD


def forged(door: Door) -> dict[str, str | None]:
    """Tokens that are not what the key signed, or no tokens at all."""
    public = door.public.read_bytes()
    good = door.mint()
    header, claims, signature = good.split(".")
    hmac_with_key = handmade(
        {"alg": "HS256"}, lambda data: hmac.new(public, data, hashlib.sha256).digest()
    )
    own = private_pem("ed25519", 5)
    key = load_pem_private_key(door.private.read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    return {
        "kid a number": handmade({"alg": "EdDSA", "kid": 1}, key.sign),
        "b64": handmade({"alg": "EdDSA", "b64": True}, key.sign),
        "b64 false": handmade({"alg": "EdDSA", "b64": False, "crit": ["b64"]}, key.sign),
        "none": None,
        "empty": "",
        "a word": "token",
        "dots": "..",
        "two parts": f"{header}.{claims}",
        "four parts": f"{good}.{signature}",
        "another signature": f"{header}.{claims}.{b64(b's' * 64)}",
        "no signature": f"{header}.{claims}.",
        "a byte less": good[:-2],
        "padded": f"{good}=",
        "other claims": f"{header}.{b64(b'{}')}.{signature}",
        "alg none": handmade({"alg": "none"}),
        "alg None": handmade({"alg": "None"}, lambda _: b"x"),
        "no alg": handmade({"typ": "JWT"}),
        "alg a list": handmade({"alg": ["EdDSA"]}),
        "HMAC with the public key": hmac_with_key,
        "another algorithm's key": mint_token(private_pem("p256"), algorithm="ES256"),
        "somebody else's key": mint_token(own),
        "its own jwk": mint_token(own, headers={"jwk": public_jwk("ed25519", 5)}),
        "its own jku": mint_token(own, headers={"jku": "http://127.0.0.1:9/keys"}),
        "its own x5c": mint_token(own, headers={"x5c": [b64(public)]}),
        "a kid that is a path": mint_token(own, headers={"kid": "../../dev/null"}),
        "header not JSON": f"{b64(b'alg')}.{claims}.{signature}",
        "header nested": f"{b64(b'[' * 4000)}.{claims}.{signature}",
        "8 KiB": f"{header}.{b64(b'x' * 6200)}.{signature}",
        "not base64": f"{header}.!!!.{signature}",
    }


def test_every_refusal_is_the_same_byte_for_byte(door: Door) -> None:
    """Whatever is wrong with a token, the 401 says the same, head and body."""
    answers: dict[str, Answer] = {}
    for what, defects in FAULTY.items():
        answers[what] = come(door.daemon, door.mint(**defects()))
    for what, token in forged(door).items():
        answers[what] = come(door.daemon, token)
        if token:
            door.minted.append(token)
            if len(token) < 4000:
                answers[f"{what} in the query"] = knock(
                    door.daemon.port, handshake(f"/?token={quote(token)}")
                )
    used = door.mint(jti=None, run="somebody")
    answers["another run"] = come(door.daemon, used, "/?run=other")
    assert {what for what, answer in answers.items() if answer.status != BAD} == set()
    assert len({answer.raw for answer in answers.values()}) == 1
    answer = answers["expired"]
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert json.loads(answer.body)["status"] == 401
    log = "\n".join(door.daemon.raw_log)
    for token in filter(None, forged(door).values()):
        assert not [part for part in token.split(".")[1:] if len(part) > 8 and part in log]


def test_audience_and_issuer_are_checked_when_set(tmp_path: Path) -> None:
    """The exact audience, alone or in a list, and the exact issuer."""
    private, public = ed25519_pair(tmp_path)
    options = ("--jwt-key", str(public), "--jwt-audience", "agentd", "--jwt-issuer", "https://i/")
    with guarded(tmp_path, *options) as daemon:
        for claims, status in (
            ({"aud": "agentd", "iss": "https://i/"}, GOOD),
            ({"aud": ["other", "agentd"], "iss": "https://i/"}, GOOD),
            ({"aud": "agentd"}, BAD),
            ({"iss": "https://i/"}, BAD),
            ({"aud": "agentd2", "iss": "https://i/"}, BAD),
            ({"aud": "Agentd", "iss": "https://i/"}, BAD),
            ({"aud": [], "iss": "https://i/"}, BAD),
            ({"aud": {"agentd": 1}, "iss": "https://i/"}, BAD),
            ({"aud": "agentd", "iss": "https://i"}, BAD),
            ({"aud": "agentd", "iss": ["https://i/"]}, BAD),
        ):
            token = mint_token(private, **claims)
            assert come(daemon, token).status == status, claims


def test_leeway_and_longest_life_are_settings(tmp_path: Path) -> None:
    """--jwt-leeway 0 forgives nothing, and --jwt-max-ttl bounds how long a token may live."""
    private, public = ed25519_pair(tmp_path)
    options = ("--jwt-key", str(public), "--jwt-leeway", "0", "--jwt-max-ttl", "60")
    with guarded(tmp_path, *options) as daemon:
        assert come(daemon, mint_token(private, ttl=40)).status == GOOD
        assert come(daemon, mint_token(private, ttl=-1)).status == BAD
        assert come(daemon, mint_token(private, ttl=70)).status == BAD


# One use.


def test_a_token_with_jti_is_good_for_one_stream(tmp_path: Path) -> None:
    """The second time it is 401; one without jti may come again; a refusal does not use it up."""
    private, public = ed25519_pair(tmp_path)
    command, starts = recording(tmp_path)
    options = (*NOBODY_WAITS, "--jwt-key", str(public))
    with serving(tmp_path, *command, options=options) as daemon:

        def stream(token: str) -> list[str]:
            daemon.submit(prompt="p\n")
            wait_waiting(daemon, 1)
            with daemon.connect(f"/?token={token}") as client:
                return read_all(client).lines

        once, often = mint_token(private), mint_token(private, jti=None)
        for _ in range(3):
            assert come(daemon, once).status == GOOD, "released: there was no context"
        assert stream(once) == ["p"]
        daemon.submit(prompt="p\n")
        wait_waiting(daemon, 1)
        for _ in range(3):
            assert come(daemon, once).status == BAD
        # The same jti in another token is the same token.
        jti = json.loads(base64.urlsafe_b64decode(once.split(".")[1] + "=="))["jti"]
        assert come(daemon, mint_token(private, jti=jti)).status == BAD
        wait_waiting(daemon, 1)
        with daemon.connect(f"/?token={often}") as client:
            assert read_all(client).lines == ["p"]
        assert stream(often) == ["p"]
        assert len(started(starts)) == 3


def test_a_token_that_waits_cannot_come_twice(tmp_path: Path) -> None:
    """While one request with it waits for a context, another one is 401; then it is good again."""
    private, public = ed25519_pair(tmp_path)
    options = ("--jwt-key", str(public), "--context-wait", "60")
    with serving(tmp_path, "cat", options=options) as daemon:
        token = mint_token(private)
        with socket.create_connection(("127.0.0.1", daemon.port), 20) as first:
            first.sendall(handshake(f"/?token={token}"))
            assert daemon.get("/healthz")[0] == 200  # the head before this one has been read
            second = knock(daemon.port, handshake(f"/?token={token}"))
            assert second.status == BAD
            first.shutdown(socket.SHUT_WR)
            assert first.recv(1) == b""  # it was seen to leave
        daemon.submit(prompt="p\n")
        with daemon.connect(f"/?token={token}") as client:
            assert read_all(client).lines == ["p"]


# Which run.


def test_a_token_may_name_its_run(tmp_path: Path) -> None:
    """The claim `run` picks the run; the same in the query is fine, another one is 401."""
    private, public = ed25519_pair(tmp_path)
    options = (*NOBODY_WAITS, "--jwt-key", str(public))
    with serving(tmp_path, "cat", options=options, directory=True) as daemon:
        for name in ("a", "b", "c", "d"):
            daemon.submit(name, prompt=f"{name}\n")
            wait_waiting(daemon, ord(name) - ord("a") + 1)

        def lines(target: str, **claims: str) -> list[str]:
            headers = {"Authorization": f"Bearer {mint_token(private, **claims)}"}  # type: ignore[arg-type]  # the same
            with daemon.connect(target, headers=headers) as client:
                return read_all(client).lines

        contradiction = mint_token(private, run="c")
        assert come(daemon, contradiction, "/?run=d").status == BAD
        assert come(daemon, contradiction, "/?run=nobody").status == BAD
        assert come(daemon, mint_token(private, run="nobody")).status == 404
        wait_waiting(daemon, 4)
        with daemon.connect(f"/?token={contradiction}") as client:  # it was released
            assert read_all(client).lines == ["c"]
        assert lines("/?run=b", run="b") == ["b"]
        assert lines("/?run=d") == ["d"]
        assert lines("/") == ["a"]
        assert come(daemon, mint_token(private, run="a")).status == 409


# Refusals.


def test_a_refusal_starts_nothing_and_uses_nothing(tmp_path: Path) -> None:
    """With a context waiting, bad tokens are refused at once and the context stays."""
    private, public = ed25519_pair(tmp_path)
    command, starts = recording(tmp_path)
    options = ("--jwt-key", str(public), "--context-wait", "60")
    with serving(tmp_path, *command, options=options) as daemon:
        daemon.submit(prompt="p\n")
        wait_waiting(daemon, 1)
        for token in (None, "", "x", mint_token(private, ttl=-60), mint_token(private_pem("p256"))):
            assert come(daemon, token).status == BAD
        assert started(starts) == []
        wait_waiting(daemon, 1)
        with daemon.connect(f"/?token={mint_token(private)}") as client:
            assert read_all(client).lines == ["p"]


def test_probes_need_no_token(door: Door) -> None:
    """Health, readiness and metrics are open."""
    for path in ("/healthz", "/readyz", "/metrics"):
        assert door.daemon.get(path)[0] == 200


def test_the_command_never_sees_the_token(tmp_path: Path) -> None:
    """Neither its environment nor its arguments hold what the client brought, nor the key."""
    private, public = ed25519_pair(tmp_path)
    script = "env; tr '\\0' '\\n' </proc/$$/cmdline; ls -l /proc/$$/fd"
    options = ("--jwt-key", str(public), "--pass-env", "PATH")
    env = {"AGENTD_SERVICE_HOST": "10.0.0.1"}
    with serving(tmp_path, "sh", "-c", script, options=options, env=env) as daemon:
        daemon.submit()
        token = mint_token(private)
        with daemon.connect(f"/?token={token}") as client:
            said = "\n".join(read_all(client).lines)
        assert "PATH=" in said
        assert token not in said
        assert str(public) not in said
        assert [word for word in said.split() if word.startswith("AGENTD_")] == [
            f"AGENTD_RUN_ID={json.loads(daemon.wait_log('run started'))['run']}"
        ]


def test_without_auth_tokens_are_ignored(tmp_path: Path) -> None:
    """With --auth none any token will do, in any place, in two as well, and again."""
    with guarded(tmp_path, "--auth", "none") as daemon:
        for token in (None, "x", mint_token(private_pem("ed25519"), ttl=-100, jti="again")) * 2:
            assert come(daemon, token).status == GOOD
        both = handshake("/?token=a", "Authorization: Bearer b", protocols="agentd.v1, bearer.c")
        assert knock(daemon.port, both).status == GOOD

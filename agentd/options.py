"""The options of ``agentd serve``, as one literal table (CONTRACT.md section 1).

Everything that needs to know them reads this table: the command line and its help, the ``AGENTD_*``
variables, the keys of the TOML file.  It refuses to know where a value comes from
(:mod:`agentd.sources`) and what values must fit together (:mod:`agentd.settings`).
"""

from typing import Literal, NamedTuple

from agentd.values import (
    ACCOUNT,
    ADDRESS,
    FOREVER,
    KEYS_URL,
    ORIGIN,
    SWITCH,
    VARIABLE,
    WORDS,
    Kind,
    choice,
    milliseconds,
    seconds,
    whole,
)

# The same as agentd.sansio.jwk knows; spelled out because `agentd health` reads this table too.
ALGORITHMS = (
    "EdDSA", "Ed25519", "ES256", "ES384", "ES512", "RS256", "RS384", "RS512",
    "PS256", "PS384", "PS512", "HS256", "HS384", "HS512",
)  # fmt: skip
HMAC_ALGORITHMS = frozenset({"HS256", "HS384", "HS512"})

SECTIONS = {
    "listen": "where to serve",
    "context": "the context",
    "child": "the command",
    "stream": "the stream",
    "auth": "who may connect",
    "log": "the log",
}
"""The dataclass of :mod:`agentd.settings` a field belongs to, and its heading in the help."""


class Option(NamedTuple):
    """One setting, under each of the names a user may give it.

    ``field`` is the section and field of ``ServeSettings`` it fills.  ``default`` is text and read
    like any other; None leaves a switch off, a list empty and anything else None.  ``many``: a
    "repeat" option is one item each time its flag is given, "words" may also hold several items
    behind one flag, apart or with commas.
    """

    name: str
    kind: Kind
    default: str | None
    field: str
    metavar: str
    help: str
    many: Literal["repeat", "words"] | None = None

    @property
    def flag(self) -> str:
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        return "AGENTD_" + self.name.upper().replace("-", "_")


OPTIONS = (
    Option(
        "listen", ADDRESS, "0.0.0.0:8765", "listen.addresses", "ADDRESS",
        "HOST:PORT, [::]:PORT or unix:PATH; sockets passed by systemd win", "repeat",
    ),
    Option(
        "if-running", choice("exit", "fail"), "exit", "listen.if_running", "exit|fail",
        "when a healthy agentd answers there already: exit 0 or 75",
    ),
    Option(
        "max-runs", whole(1, 10_000), "8", "listen.max_runs", "N",
        "beyond it new runs are refused with 503",
    ),
    Option(
        "context", WORDS, "/tmp/vf-pending-query.json", "context.path", "PATH",  # noqa: S108  # the contract's path; what is found there is verified
        "the file to watch; a PATH ending in / is a directory of <id>.json",
    ),
    Option(
        "context-from", choice("file"), "file", "context.source", "file",
        "where a context comes from",
    ),
    Option(
        "allow-context", choice("args", "cwd"), None, "context.allow", "KEY",
        "of args, cwd: what a context may set besides prompt, env, id and timeout", "words",
    ),
    Option(
        "context-wait", seconds(), "5", "context.wait", "S",
        "how long a connection waits for its context",
    ),
    Option(
        "context-ttl", seconds(), "60", "context.ttl", "S",
        "how long a context waits in memory for its client",
    ),
    Option(
        "start", choice("connect"), "connect", "context.start", "connect",
        "start the command when the client is there",
    ),
    Option(
        "stdin", choice("prompt", "context", "client", "none"), "prompt", "child.stdin",
        "prompt|context|client|none",
        "the command reads: the prompt; the whole context without env as one JSON line; what the "
        "client sends; nothing",
    ),
    Option(
        "stderr", choice("send", "merge", "log", "drop"), "send", "child.stderr",
        "send|merge|log|drop",
        "agentd.v1 sends stderr records; raw never does and logs instead",
    ),
    Option(
        "pty", SWITCH, None, "child.pty", "",
        "make the command's stdout a terminal, so that it line-buffers",
    ),
    Option(
        "user", ACCOUNT, None, "child.user", "USER[:GROUP]",
        "run the command as this user (default: the daemon's own)",
    ),
    Option("cwd", WORDS, "/", "child.cwd", "DIR", "the command's working directory"),
    Option(
        "pass-env", VARIABLE, None, "child.pass_env", "NAME",
        "daemon variables the command gets besides PATH HOME USER SHELL LANG LC_* TZ TERM TMPDIR",
        "words",
    ),
    Option(
        "timeout", seconds(zero=FOREVER), "0", "child.timeout", "S",
        "end a run after this long; 0 = never",
    ),
    Option("grace", seconds(), "5", "child.grace", "S", "between SIGTERM and SIGKILL"),
    Option(
        "drain", seconds(), "0.25", "child.drain", "S",
        "wait this long for stdout after the command has exited",
    ),
    Option(
        "max-line", whole(1, 16_777_216, "of bytes "), "262144", "stream.max_line", "BYTES",
        "a longer line goes out in parts",
    ),
    Option(
        "flush-partial", milliseconds(60_000), "0", "stream.flush_partial", "MS",
        "agentd.v1: send an unfinished line after this much silence, as a part; 0 = off",
    ),
    Option(
        "skip-empty-lines", SWITCH, None, "stream.skip_empty_lines", "",
        "raw: do not send empty lines",
    ),
    Option(
        "invalid-utf8", choice("replace", "binary"), "replace", "stream.invalid_utf8",
        "replace|binary",
        "raw: send U+FFFD, or a binary frame with the exact bytes",
    ),
    Option(
        "write-timeout", seconds(zero=FOREVER), "30", "stream.write_timeout", "S",
        "end a client whose socket takes nothing for this long; 0 = never",
    ),
    Option(
        "ping", seconds(zero=FOREVER), "20", "stream.ping", "S",
        "keep-alive; a silent client is gone after 2 S + 5 s; 0 = off",
    ),
    Option(
        "auth", choice("jwt", "none"), "jwt", "auth.mode", "jwt|none",
        "none lets everyone in and must be said",
    ),
    Option(
        "jwt-key", WORDS, None, "auth.keys", "FILE",
        "PEM public key, JWK or JWKS; with --jwt-algorithm HS* a secret of at least 32 bytes",
        "repeat",
    ),
    Option(
        "jwt-algorithm", choice(*ALGORITHMS), None, "auth.algorithm", "ALG",
        "needed only for HMAC (default: what fits the key)",
    ),
    Option(
        "jwt-jwks-url", KEYS_URL, None, "auth.jwks_url", "URL",
        "where to fetch keys; cached, and again on an unknown kid",
    ),
    Option("jwt-audience", WORDS, None, "auth.audience", "A", "the aud a token must have"),
    Option("jwt-issuer", WORDS, None, "auth.issuer", "I", "the iss a token must have"),
    Option(
        "jwt-leeway", seconds(), "5", "auth.leeway", "S",
        "how far clocks may be apart",
    ),
    Option(
        "jwt-max-ttl", seconds(1), "3600", "auth.max_ttl", "S",
        "refuse a token that expires later than this from now",
    ),
    Option(
        "allow-origin", ORIGIN, None, "auth.origins", "ORIGIN",
        "browser origin to let in (default: any with jwt, loopback ones with none)", "repeat",
    ),
    Option(
        "log-format", choice("auto", "text", "json"), "auto", "log.format", "auto|text|json",
        "auto: text on a terminal, journal priorities under systemd, else JSON lines",
    ),
    Option(
        "log-level", choice("debug", "info", "warning", "error"), "info", "log.level",
        "debug|info|warning|error", "the least important messages to write",
    ),
)  # fmt: skip

"""Requests that are nearly right, or not at all. All of it follows from a seeded random source."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Final, NamedTuple

__all__ = ["Sent", "sent"]

ORG: Final = "org:fuzzed"


class Sent(NamedTuple):
    """The bytes of a request. ``is_framed``: its length is said truly, so that another may follow it."""

    raw: bytes
    is_framed: bool


class Plain(NamedTuple):
    method: str
    path: str
    body: Any = None


# What a client sends that does everything right.
PLAIN: Final = (
    Plain("GET", f"/v1/limits?org={ORG}"),
    Plain("GET", f"/v1/phase?org={ORG}"),
    Plain("GET", f"/v1/phases?org={ORG}"),
    Plain("GET", f"/v1/whois?org={ORG}&include=info"),
    Plain("GET", f"/v1/payment_methods?org={ORG}"),
    Plain("GET", f"/v1/usage?org={ORG}"),
    Plain("GET", "/v1/changes?since=&wait=0"),
    Plain("GET", "/v1/clock?id=clock_1f"),
    Plain("GET", "/v1/pull"),
    Plain("GET", "/v1/whoami"),
    Plain("GET", "/checkout?token=a.b"),
    Plain("GET", "/openapi.json"),
    Plain("POST", "/v1/report", {"org": ORG, "feature": "feature:calls", "n": 1, "at": None, "clobber": False}),
    Plain("POST", "/v1/subscribe", {"org": ORG, "phases": [{"features": ["plan:free@1"]}]}),
    Plain("POST", "/v1/subscribe", {"org": ORG, "info": {"email": "a@b.example", "metadata": {"k": "v"}}}),
    Plain("POST", "/v1/clock", {"name": "c", "present": "2024-01-31T00:00:00Z"}),
    Plain("POST", "/v1/push", {"plans": {"plan:x@1": {"features": {"feature:x": {"tiers": [{"upto": 3}]}}}}}),
    Plain(
        "POST",
        "/v1/checkout",
        {"org": ORG, "success_url": "https://a.example/", "features": ["plan:free@1"], "trial_days": 3},
    ),
    Plain(
        "POST",
        "/v1/reserve",
        {"org": ORG, "demands": [{"feature": "feature:calls", "n": 1}], "ids": [1], "reservation_seconds": 60},
    ),
    Plain("POST", "/v1/commit", {"kept": [{"org": ORG, "feature": "feature:calls", "id": 1, "n": 1}]}),
    Plain("POST", "/v1/release", {"holds": [{"org": ORG, "feature": "feature:calls", "id": 1}]}),
    Plain("POST", "/v1/adjust", {"org": ORG, "feature": "feature:calls", "delta": -1, "key": "k"}),
    Plain("POST", "/v1/reports", {"reports": [{"org": ORG, "feature": "feature:calls", "n": 1, "key": "k"}]}),
    Plain("POST", "/v1/check", {"org": ORG, "feature": "feature:calls", "n": 1}),
    Plain("POST", "/checkout", "token=a.b&csrf=x"),
)

VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**60, -(2**63), 0.1, 1e308, "", " ", "\x00", "\r\nx: y",
    "org:", "org:a", "ORG:a", "feature:", "feature:calls@plan:free@1", "plan:free@1", "plan:@", "é" * 300, "x" * 3000,
    "\U0001f600", "'; drop table orgs --", "{{7*7}}", "<script>alert(1)</script>", "../../etc/passwd", "%s%n", "clock_1f",
    "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2024-02-30T00:00:00Z", "2024-01-01T00:00:00+23:59", "1e999", "NaN",
    [], {}, [[]], [{}], {"": ""}, [None] * 100, {"plans": {}}, {str(n): n for n in range(60)},
)  # fmt: skip

HEADERS: Final = (
    b"Tier-Clock: clock_1f", b"Tier-Clock: \xff\xfe", b"Tier-Clock: ../x", b"Idempotency-Key: a key", b"Idempotency-Key: ",
    b"Idempotency-Key: " + b"x" * 300, b"Idempotency-Key: \xc3\xa9", b"Authorization: Basic !!!", b"Authorization: Basic",
    b"Authorization: Bearer x", b"X-Request-Id: a\tb", b"X-Request-Id: " + b"a" * 64, b"Host: evil.example",
    b"Host: [", b"Host: a, b", b"Origin: null", b"Origin: http://[", b"Sec-Fetch-Site: cross-site", b"Cookie: a=b; tier_checkout=x",
    b"Expect: 100-continue", b"Transfer-Encoding: chunked", b"Content-Encoding: gzip", b"Content-Type: text/plain",
    b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Content-Length: 1e3", b"Upgrade: websocket",
    b"Connection: close, upgrade", b"X: " + b"y" * 9000, b"no colon", b": no name", b" folded: x", b"Range: bytes=0-",
    b"If-None-Match: *", b"X-Forwarded-For: 192.0.2.1", b"X-Forwarded-Proto: javascript", b"X-HTTP-Method-Override: DELETE",
)  # fmt: skip

METHODS: Final = (
    "GET",
    "POST",
    "HEAD",
    "PUT",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "CONNECT",
    "get",
    "G\x00T",
    "X" * 300,
)

PATHS: Final = (
    "/", "//", "/v1", "/v1/", "/v1/limits/", "/v1//limits", "/v1/../v1/limits", "/v1%2Flimits?org=org:a", "/%76%31/limits?org=org:a",
    "/v1/limits?org=%00", "/v1/limits?org=%ff", "/v1/limits?org=org:%ED%A0%80", "/v1/limits?org", "/v1/limits?&&&", "/v1/limits?org=a;b",
    "/v1/limits#x", "/v1/limits?" + "a=b&" * 100, "/v1/limits?org=org:" + "x" * 5000, "http://evil.example/v1/whoami", "*", "x",
    "/checkout?token=" + "A" * 4000, "/checkout?token=%00.%00", "/checkout?token=e30.e30", "/openapi.json/", "/.env", "/\\..\\",
    "/v1/changes?since=x&wait=1e9", "/v1/changes?since=" + "9" * 50 + "&wait=-1", "/v1/changes?wait=nan", "/v1/clock?id=",
)  # fmt: skip


def sent(random: random.Random) -> Sent:
    """One request: right, or wrong in its values, its JSON, its path, its headers or its bytes."""
    plain = random.choice(PLAIN)
    make = random.choices((_right, _values, _json, _path, _headers, _bytes), (1, 5, 3, 2, 3, 2))[0]
    return make(plain, random)


def _request(method: str, path: str, body: bytes | None, *headers: bytes) -> bytes:
    lines = [f"{method} {path} HTTP/1.1".encode("utf-8", "surrogatepass"), b"Host: 127.0.0.1", *headers]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")


def _body(value: Any) -> bytes | None:
    return None if value is None else value.encode() if isinstance(value, str) else json.dumps(value).encode()


def _right(plain: Plain, random: random.Random) -> Sent:
    return Sent(_request(plain.method, plain.path, _body(plain.body)), True)


def _values(plain: Plain, random: random.Random) -> Sent:
    """Values of other types and sizes, names that nobody knows, names left out."""
    if not isinstance(plain.body, dict):
        return _path(plain, random)
    body = json.loads(json.dumps(plain.body))
    for _ in range(random.randint(1, 3)):
        holder, key = random.choice(list(_places(body)))
        if random.random() < 0.15 and isinstance(holder, dict):
            del holder[key]
        elif random.random() < 0.15 and isinstance(holder, dict):
            holder[random.choice(("nope", "ORG", "__proto__", "stripe_id", "", "x" * 500))] = _value(random)
        else:
            holder[key] = _value(random)
        if not body:
            break
    return Sent(_request(plain.method, plain.path, _body(body)), True)


def _value(random: random.Random) -> Any:
    return deepcopy(random.choice(VALUES))  # its own: the next change may be in it


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(pairs):
        found += [(value, key), *_places(item)]
    return found


BROKEN: Final[tuple[Callable[[bytes, random.Random], bytes], ...]] = (
    lambda text, random: text[: random.randrange(len(text))],
    lambda text, random: text * 2,
    lambda text, random: b"[" * random.choice((10, 40, 20_000)) + text,
    lambda text, random: b'{"a":' * random.choice((10, 40, 20_000)) + text,
    lambda text, random: text.replace(b":", b": NaN, :", 1),
    lambda text, random: text.replace(b'"', b"'"),
    lambda text, random: text.replace(b"{", b'{"org": "org:twice", "ORG": 1, ', 1),
    lambda text, random: b"// a comment\n" + text + b"/* no end",
    lambda text, random: text[:-1] + b",}",
    lambda text, random: b"\xef\xbb\xbf" + text,
    lambda text, random: text.decode().encode("utf-16"),
    lambda text, random: text.replace(b"org:", b"\\ud800\\u0000", 1),
    lambda text, random: text.replace(b"1", b"9" * random.choice((30, 400, 5000)), 1),
    lambda text, random: text.replace(b"1", b"1e" + b"9" * random.choice((3, 30)), 1),
    lambda text, random: b" " * random.choice((1, 100_000)) + text,
    lambda text, random: b'"' + b'\\"' * random.choice((10, 50_000)),
    lambda text, random: b"/*" * random.choice((10, 50_000)),
    lambda text, random: random.choice((b"null", b"0", b'"x"', b"[]", b"", b"true", b"\x00", b'"pricing.json"')),
    lambda text, random: random.randbytes(random.randint(1, 400)),
)


def _json(plain: Plain, random: random.Random) -> Sent:
    body = _body(plain.body) or b'{"org": "org:fuzzed"}'
    return Sent(_request(plain.method, plain.path, random.choice(BROKEN)(body, random)), True)


def _path(plain: Plain, random: random.Random) -> Sent:
    path = (
        random.choice(PATHS)
        if random.random() < 0.7
        else plain.path.replace(ORG, random.choice(("", "org:é", "%", "%zz")))
    )
    return Sent(_request(random.choice(METHODS), path, _body(plain.body)), False)


def _headers(plain: Plain, random: random.Random) -> Sent:
    extra = random.choices(HEADERS, k=random.randint(1, 4))
    return Sent(_request(plain.method, plain.path, _body(plain.body), *extra), False)


def _bytes(plain: Plain, random: random.Random) -> Sent:
    """Bytes changed, lost or put in anywhere in the request."""
    raw = bytearray(_request(plain.method, plain.path, _body(plain.body)))
    for _ in range(random.randint(1, 5)):
        at = random.randrange(len(raw))
        kind = random.randrange(3)
        if kind == 0:
            raw[at] = random.randrange(256)
        elif kind == 1:
            del raw[at : at + random.randint(1, 9)]
        else:
            raw[at:at] = random.randbytes(random.randint(1, 9))
        if not raw:
            break
    return Sent(bytes(raw), False)

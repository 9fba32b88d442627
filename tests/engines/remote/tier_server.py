"""A Tier server for tests, in a process of its own: ``python tier_server.py PORT LOG [honoured]``.

It speaks the wire format over a `Tier` in memory, which makes it one that does right what ours does right. Every report
that it counts is a line of the log: the key (or ``-``), org, feature and n. With ``honoured`` a key counts once, and is
sent back.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tier_middleware import Tier, TierError
from tier_middleware.names import MAX_UNITS
from tier_middleware.pricing import as_dict


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, log: Path, *, is_honouring: bool) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.tier = Tier("memory://")
        self.is_honouring = is_honouring
        self.lock = threading.Lock()
        self.seen: set[str] = set()
        self.requests: list[dict[str, Any]] = []
        self.log = open(log, "a", buffering=1)  # noqa: SIM115  # for as long as the server lives


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        self._answer(json.loads(self.rfile.read(length) or b"{}"))

    def _answer(self, body: dict[str, Any]) -> None:
        url = urlsplit(self.path)
        asked = {**dict(parse_qsl(url.query)), **body}
        tier: Any = self.server.tier
        with self.server.lock:
            self.server.requests.append({"path": url.path, "headers": {k.lower(): v for k, v in self.headers.items()}})
        clock = self.headers.get("tier-clock")
        try:
            answer = CALLS[url.path](self, tier.on_clock(clock) if clock else tier, asked)
            status = 200
        except TierError as error:
            status, answer = error.status or 500, {"code": error.code, "message": error.message}
        except KeyError:
            status, answer = 404, {"code": "not_found", "message": "Not Found"}
        if status != 200:
            answer["status"] = status
        raw = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        key = self.headers.get("idempotency-key")
        if key and self.server.is_honouring and status == 200:
            self.send_header("idempotency-key", key)
        self.end_headers()
        self.wfile.write(raw)

    # ---- calls ------------------------------------------------------------------------------------------------------

    def report(self, tier: Tier, asked: Mapping[str, Any]) -> Any:
        key = self.headers.get("idempotency-key") or "-"
        with self.server.lock:
            if self.server.is_honouring and key in self.server.seen:
                return {}
            tier.report(
                asked["org"], asked["feature"], asked.get("n") or 0,
                at=time_of(asked.get("at")), clobber=asked.get("clobber", False),
            )  # fmt: skip
            self.server.seen.add(key)
            self.server.log.write(f"{key} {asked['org']} {asked['feature']} {asked.get('n')}\n")
        return {}

    def limits(self, tier: Tier, asked: Mapping[str, Any]) -> Any:
        found = tier.lookup_limits(asked["org"])
        usage = [
            {"feature": one.feature, "used": one.used, "limit": MAX_UNITS if one.limit is None else one.limit}
            for one in found
        ]
        return {"org": found.org, "usage": usage or None}

    def subscribe(self, tier: Tier, asked: Mapping[str, Any]) -> Any:
        if asked.get("info"):
            tier.update_org(asked["org"], asked["info"])
        phases = asked.get("phases")
        if phases and len(phases) == 1 and not phases[0].get("features"):
            tier.cancel(asked["org"], at=time_of(phases[0].get("effective")))
        elif phases:
            tier.schedule(asked["org"], [{**phase, "effective": time_of(phase.get("effective"))} for phase in phases])
        return {}

    def phase(self, tier: Tier, asked: Mapping[str, Any]) -> Any:
        found = tier.lookup_phase(asked["org"])
        if found is None:
            raise KeyError
        return phase_form(found)

    def phases(self, tier: Tier, asked: Mapping[str, Any]) -> Any:
        found = tier.lookup_phases(asked["org"])
        none = {"effective": "0001-01-01T00:00:00Z", "end": "0001-01-01T00:00:00Z"}
        current = none if found.current is None else period_form(found.current)
        return {"current": current, "phases": [phase_form(one) for one in found.phases] or None}

    def whois(self, tier: Tier, asked: Mapping[str, Any]) -> Any:
        one = tier.lookup_org(asked["org"])
        return {
            "org": one.org, "stripe_id": "cus_1", "created": one.created.isoformat(), "email": one.email,
            "name": one.name, "description": one.description, "phone": one.phone, "metadata": dict(one.metadata),
            "invoice_settings": {"default_payment_method": one.default_payment_method},
        }  # fmt: skip

    def clock(self, tier: Tier, asked: Mapping[str, Any]) -> Any:
        if "present" not in asked:
            clock = tier.on_clock(asked["id"]).clock
        elif "id" in asked:
            clocked = tier.on_clock(asked["id"])
            clocked.advance(datetime.fromisoformat(asked["present"]))
            clock = clocked.clock
        else:
            clock = tier.with_clock(asked.get("name", ""), datetime.fromisoformat(asked["present"])).clock
        return {"id": clock.id, "name": clock.name, "present": clock.present.isoformat(), "status": "ready"}

    def payment_methods(self, tier: Tier, asked: Mapping[str, Any]) -> Any:
        return {"org": tier.whois(asked["org"]).org, "methods": [{"id": "pm_1", "type": "card"}]}

    def checkout(self, tier: Tier, asked: Mapping[str, Any]) -> Any:
        return {"url": "https://pay.example.com/?" + json.dumps(asked, sort_keys=True)}

    def whoami(self, tier: Tier, asked: Mapping[str, Any]) -> Any:
        return {"id": "acct_1", "email": "owner@example.com", "created": "2020-01-01T00:00:00Z", "url": "https://x"}


def time_of(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value)


def period_form(period: Any) -> Any:
    return {"effective": period.effective.isoformat(), "end": period.end.isoformat()}


def phase_form(phase: Any) -> Any:
    form: dict[str, Any] = {
        "effective": phase.effective.isoformat(), "features": list(phase.features), "plans": list(phase.plans),
        "fragments": list(phase.fragments), "trial": phase.trial, "current": period_form(phase.current),
    }  # fmt: skip
    return form if phase.end is None else {**form, "end": phase.end.isoformat()}


CALLS: dict[str, Callable[[Handler, Any, Mapping[str, Any]], Any]] = {
    "/v1/report": Handler.report,
    "/v1/limits": Handler.limits,
    "/v1/subscribe": Handler.subscribe,
    "/v1/phase": Handler.phase,
    "/v1/phases": Handler.phases,
    "/v1/whois": Handler.whois,
    "/v1/whoami": Handler.whoami,
    "/v1/payment_methods": Handler.payment_methods,
    "/v1/checkout": Handler.checkout,
    "/v1/clock": Handler.clock,
    "/v1/pull": lambda handler, tier, asked: as_dict(tier.pull()),
    "/v1/push": lambda handler, tier, asked: {"results": [one._asdict() for one in tier.push(asked)]},
    "/test/requests": lambda handler, tier, asked: {"requests": handler.server.requests},
}


def main() -> None:
    port, log, *words = sys.argv[1:]
    server = Server(int(port), Path(log), is_honouring="honoured" in words)
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()

"""A Tier server in a second process, and what it says it has counted."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

SERVER = Path(__file__).with_name("tier_server.py")
MODEL = {
    "plans": {
        "plan:free@1": {"features": {"feature:calls": {"tiers": [{"upto": 3}]}, "feature:export": {}}},
        "plan:pro@1": {
            "features": {"feature:calls": {"tiers": [{"upto": 100}]}, "feature:mails": {"tiers": [{"upto": 5}]}}
        },
        "plan:team@1": {"features": {"feature:seats": {"tiers": [{"upto": 5}], "aggregate": "perpetual"}}},
        "plan:open@1": {"features": {"feature:calls": {"tiers": [{}]}}},
    }
}


class TierServer:
    """The server's process: it can be killed, and started again at its port with nothing in its memory but the log."""

    def __init__(self, folder: Path, *, is_honouring: bool = False) -> None:
        self.log = folder / "counted.log"
        self._words = ["honoured"] if is_honouring else []
        self._process: subprocess.Popen[str] | None = None
        self.port = 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(SERVER), str(self.port), str(self.log), *self._words]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def reports(self) -> list[tuple[str, str, str, int]]:
        """Each report that was counted: key, org, feature, n."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [(key, org, feature, int(n)) for key, org, feature, n in lines]

    @property
    def counted(self) -> Counter[str]:
        """Units by org."""
        found: Counter[str] = Counter()
        for _, org, _, n in self.reports:
            found[org] += n
        return found

    def call(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data)) as response:
            return json.loads(response.read())

    def subscribe(self, org: str, plan: str) -> None:
        """As somebody else does it: this process does not hear of it."""
        self.call("/v1/subscribe", {"org": org, "phases": [{"features": [plan]}]})

    def report(self, org: str, n: int, feature: str = "feature:calls") -> None:
        self.call("/v1/report", {"org": org, "feature": feature, "n": n})

    def requests(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("/test/requests")["requests"]
        return [one for one in found if one["path"] != "/test/requests"]

    def asked(self, path: str = "/v1/limits") -> int:
        return sum(one["path"] == path for one in self.requests())

"""Threads that are the first to read a kind of answer or body, all at once: by msgspec 0.22 alone the process ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys, threading
from tier_middleware import wire, wire_types
from tier_middleware.extension import forms
from tier_middleware.server.faults import Fault
from tier_middleware.server.reading import read_body, read_query
from tier_middleware.errors import TierError
from tier_middleware.wire import Request, Response, decoded
import msgspec

sys.setswitchinterval(1e-6)
kinds = [kind for module in (wire_types, forms) for kind in vars(module).values()
         if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct]
assert len(kinds) > 20, kinds
request = Request("GET", "/v1/limits")

def read(kind):
    try:
        decoded(request, Response(200, b'{"org": "org:a"}', {}), kind)
    except TierError:
        pass
    try:
        read_body(b'{"org": "org:a"}', kind)
    except Fault:
        pass
    try:
        read_query(b"org=org:a", kind)
    except Fault:
        pass

for kind in kinds:
    together = threading.Barrier(12)
    def first():
        together.wait()
        read(kind)
    threads = [threading.Thread(target=first) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print("read")
"""


@pytest.mark.parametrize("number", range(6))
def test_threads_that_read_a_kind_for_the_first_time(number: int) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "read\n", "")

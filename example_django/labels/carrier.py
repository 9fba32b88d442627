"""The parcel service that prints labels; it stands for a company elsewhere, which is down at times."""

from __future__ import annotations


class CarrierDown(Exception):
    pass


def register(address: str) -> None:
    if "unreachable" in address:
        raise CarrierDown("The parcel service does not answer; try again later.")


async def is_deliverable(address: str) -> bool:
    return any(part.isdigit() for part in address.split())

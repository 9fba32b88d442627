"""What our server adds to Tier's API: reservations, corrections, many reports at once, and changes of limits. Pure.

A client knows such a server by the header ``tier-extensions`` of its answers. ``asking`` is its half, ``serving`` the
server's, and ``forms`` what goes between them.
"""

"""Campaigns: what this library promises, shown at length against what happens to real processes and files.

    python -m tests.campaigns NAME [options]

Each prints its totals and ends with status 1 where a promise was broken; `test_campaigns.py` has a short version of
each.
"""

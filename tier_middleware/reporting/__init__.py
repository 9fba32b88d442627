"""What could not be counted at once, on its way: to a server, or to an engine that was away.

``outbox`` keeps it in a file (``file``, ``schema``), as ``batches``; ``reporter`` empties it, in a thread, with pauses
as ``backoff`` has them.
"""

"""Reports on their way to a server: ``outbox`` keeps them, ``reporter`` empties it (and needs the extra ``http``)."""

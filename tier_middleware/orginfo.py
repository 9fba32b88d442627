"""What is known of an org besides its plans: how it is checked, and how an update changes it. Tier's field names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from .errors import InvalidRequest
from .names import MAX_NAME, nearest, shown
from .read_only import ReadOnlyDict

__all__ = ["MAX_METADATA", "NO_INFO", "OrgInfo", "checked_info", "checked_text", "info_text", "read_info", "updated"]

RESERVED: Final = "tier."
MAX_METADATA: Final = 50  # keys, as Stripe allows

_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
_UNFIT = re.compile("[\x00\ud800-\udfff]")  # NUL and lone surrogates: what some file, socket or database refuses
_TEXTS: Final = ("email", "name", "description", "phone", "payment_method", "default_payment_method")


@dataclass(frozen=True, slots=True)
class OrgInfo:
    """An org's contact data and metadata (texts by text). All of it is optional."""

    email: str = ""
    name: str = ""
    description: str = ""
    phone: str = ""
    metadata: Mapping[str, str] = field(default_factory=ReadOnlyDict)
    payment_method: str = ""
    default_payment_method: str = ""


NO_INFO: Final = OrgInfo()


def checked_info(value: OrgInfo | Mapping[str, Any]) -> OrgInfo:
    """Info as an application gives it: an `OrgInfo`, or a mapping in Tier's wire form.

    Raises `InvalidRequest` that names the field and the value, with Tier's codes ``invalid_email``,
    ``invalid_metadata``.
    """
    info = value if isinstance(value, OrgInfo) else _read(value)
    for name in _TEXTS:
        checked_text(getattr(info, name), f"info.{name}")
    if info.email and not _EMAIL.fullmatch(info.email):
        raise _mistake("info.email", "must be an e-mail address", info.email, "invalid_email")
    if not isinstance(info.metadata, Mapping):
        raise _mistake("info.metadata", "must be texts by text", info.metadata, "invalid_metadata")
    for key, text in info.metadata.items():
        checked_text(key, "info.metadata", "invalid_metadata")
        if key.startswith(RESERVED):
            raise _mistake("info.metadata", f"must not use the reserved prefix {RESERVED!r}", key, "invalid_metadata")
        checked_text(text, f"info.metadata[{shown(key)}]", "invalid_metadata")
    return info


def checked_text(text: object, field: str, code: str = "invalid_request") -> str:
    if not isinstance(text, str) or len(text) > MAX_NAME or _UNFIT.search(text):
        raise _mistake(field, f"must be a text of at most {MAX_NAME} characters", text, code)
    return text


def _read(value: Mapping[str, Any]) -> OrgInfo:
    if not isinstance(value, Mapping):
        raise _mistake("info", "must be an OrgInfo or a mapping", value)
    given = dict(value)
    given.pop("created", None)  # the server's own: accepted and ignored, as Tier does
    settings = given.pop("invoice_settings", None) or {}
    if not isinstance(settings, Mapping) or set(settings) - {"default_payment_method"}:
        raise _mistake("info.invoice_settings", "must have only 'default_payment_method'", settings)
    given |= settings
    known = [field.name for field in fields(OrgInfo)]
    for name in given:
        if name not in known:
            hint = nearest(str(name), known)
            raise _mistake(f"info.{name}", "unknown field" + (f", did you mean {hint!r}?" if hint else ""), given[name])
    return OrgInfo(**given)


def updated(old: OrgInfo, new: OrgInfo) -> OrgInfo:
    """The info after an update: an empty text changes nothing, and deletes a key of the metadata.

    Raises `InvalidRequest` (``invalid_metadata``) where the metadata would have too many keys.
    """
    texts = {name: getattr(new, name) or getattr(old, name) for name in _TEXTS}
    metadata = {key: text for key, text in {**old.metadata, **new.metadata}.items() if text}
    if len(metadata) > MAX_METADATA:
        raise _mistake(
            "info.metadata", f"must have at most {MAX_METADATA} keys in all", len(metadata), "invalid_metadata"
        )
    return replace(old, **texts, metadata=ReadOnlyDict(metadata))


def info_text(info: OrgInfo) -> str:
    """Info for storage."""
    return json.dumps({name: getattr(info, name) for name in _TEXTS} | {"metadata": dict(info.metadata)})


def read_info(text: str) -> OrgInfo:
    """The info that `info_text` wrote; of an org that has none, the text is empty."""
    if not text:
        return NO_INFO
    stored = json.loads(text)
    return OrgInfo(**stored | {"metadata": ReadOnlyDict(stored["metadata"])})


def _mistake(path: str, message: str, got: object, code: str = "invalid_request") -> InvalidRequest:
    return InvalidRequest(f"{path}: {message}, got {shown(got)}", path=path, code=code)

"""Who may come in: pages of which origins, and who shows which keys. The same for the socket and for REST."""

import hmac
from collections.abc import Mapping, Sequence, Set
from urllib.parse import urlsplit

from .config import Access

KEY_SUBPROTOCOL = "openai-insecure-api-key."
"""How a browser, which cannot set headers on a WebSocket, shows its key to an OpenAI Realtime server."""


def shown_keys(headers: Mapping[str, str], subprotocols: Sequence[str]) -> list[str]:
    """The keys that a caller shows, in the header or, as a browser must, in a subprotocol."""
    keys = [p.removeprefix(KEY_SUBPROTOCOL) for p in subprotocols if p.startswith(KEY_SUBPROTOCOL)]
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return [*keys, token.strip()] if scheme.lower() == "bearer" else keys


def is_authorized(shown: Sequence[str], api_keys: Set[str]) -> bool:
    """One of the keys that are shown is one of ours, or none is asked for."""
    if not api_keys:
        return True
    return any(hmac.compare_digest(a.encode(), b.encode()) for a in shown for b in api_keys)


def is_origin_allowed(origin: str | None, host: str | None, access: Access) -> bool:
    """A page may connect to the host that it came from, and from the origins that the config names (RFC 6454)."""
    if origin is None or "*" in access.allowed_origins or origin in access.allowed_origins:
        return True
    try:
        return host is not None and urlsplit(origin).netloc == host
    except ValueError:  # no URL
        return False

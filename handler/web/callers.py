"""Who calls: by a key, or by an address; and which pages may make a browser call."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from handler.settings import Settings

#: How the names of keys begin.
_KEY = "key-"


def given_key(headers: Headers) -> str:
    """The key that a request carries, as X-API-Key or as a bearer token (RFC 6750); empty for none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return headers.get("x-api-key", "") or (token.strip() if scheme.lower() == "bearer" else "")


def owner_of(given: str, keys: tuple[str, ...]) -> str:
    """The name of a key in job documents, which is not the key; empty for one that is wrong."""
    right = [key for key in keys if hmac.compare_digest(key.encode(), given.encode(errors="replace"))]
    return _KEY + hashlib.sha256(right[0].encode()).hexdigest()[:32] if right else ""


def gateway_key(scope: Scope) -> str:
    """The name of the key that API Gateway has checked, which is not the key; empty elsewhere."""
    event = scope.get("aws.event") or {}
    id = ((event.get("requestContext") or {}).get("identity") or {}).get("apiKeyId") or ""
    return _KEY + hashlib.sha256(str(id).encode()).hexdigest()[:32] if id else ""


def may_see(owner: str, caller: str) -> bool:
    """Whether a caller may know of a job: with keys, only of its own; without them, whoever knows the id.

    Args:
        owner: of the job.
        caller: its name, from `owner_of`, or its address.
    """
    return owner == caller or not owner.startswith(_KEY)


def foreign_page(scope: Scope, headers: Headers, settings: Settings) -> bool:
    """Whether a browser sends this for a page that is not the service's own, nor one of CORS_ORIGINS.

    Such a page could make the browser of a visitor use the service of the visitor's machine. Where the service is
    for this machine only, names that lead here by a stranger's name server (DNS rebinding) are refused as well.
    """
    origin = headers.get("origin", "")
    if not origin or scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return False
    if "*" in settings.allowed_origins or origin in settings.allowed_origins:
        return False
    page = urlsplit(origin)
    public = urlsplit(settings.public_url)
    if public.netloc and (page.scheme, page.netloc) == (public.scheme, public.netloc):
        return False
    if page.netloc.lower() != headers.get("host", "").lower():
        return True
    return _for_this_machine(settings.host) and not _for_this_machine(page.hostname or "")


def _for_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")

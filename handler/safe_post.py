"""A POST to an address that a stranger chose.

The address is treated as an attack: only http and https; every address that the name resolves to must be a public one;
and the connection goes to the very address that was checked, so that a name server which answers differently the
second time gains nothing. The same holds for each redirect. Proxies named by the environment are not used: they would
resolve the name again.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from urllib.parse import SplitResult, quote, urljoin, urlsplit

MAX_REDIRECTS = 3
#: Bytes of an answer that are read; what it says does not matter.
MAX_ANSWER = 64 * 1024
#: Gives the IP addresses of a host name and port; may raise OSError.
Resolver = Callable[[str, int], Sequence[str]]


class Refused(Exception):
    """The URL, or where it leads, is not called: wrong scheme, or an address that is not public."""


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name by the system's resolver, which has separate time limits.

    Raises:
        OSError.
    """
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Whether an IP address is one that everybody on the Internet can reach, by IANA's registries of special ones."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.sixtofour:  # 2002::/16 leads to the IPv4 address within
            return is_public(str(ip.sixtofour))
        if ip.is_site_local:
            return False
    elif ip in ipaddress.IPv4Network("192.0.0.0/24"):  # of which Python 3.11 knows only parts
        return False
    # Python's versions differ in what is_global covers, so everything else that is special is said too. IPv4-mapped and
    # NAT64 addresses count as reserved.
    special = ip.is_multicast or ip.is_reserved or ip.is_private or ip.is_loopback or ip.is_link_local
    return ip.is_global and not special and not ip.is_unspecified


def check_url(url: str, *, allow_private: bool = False) -> str:
    """The URL, if it is one that can be called at all; does not resolve the name. For refusing a request early.

    Raises:
        Refused: not http or https, no host, a user name in it, or an address (not a name) that is not public.
    """
    parts = _split(url)
    if not allow_private:
        with suppress(ValueError):  # a name
            if not is_public(_host(parts)):
                raise Refused("a webhook must not go to a private address")
    return url


def post(
    url: str, body: bytes, headers: Mapping[str, str], deadline: float, resolve: Resolver, allow_private: bool
) -> int:
    """One attempt, redirects followed with the same POST.

    Args:
        url: http or https.
        body: sent as it is.
        headers: sent too.
        deadline: of `time.monotonic`, until when the answer must be read.
        resolve: names to addresses.
        allow_private: do not check addresses.

    Returns:
        The status of the last answer.

    Raises:
        Refused: the URL, or where it leads, is not called.
        OSError, http.client.HTTPException: no answer.
    """
    for _ in range(MAX_REDIRECTS + 1):
        status, location = _request(_split(url), body, headers, deadline, resolve, allow_private)
        if status not in (301, 302, 307, 308) or not location:
            return status
        target = urljoin(url, location)
        if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
            raise Refused("a redirect leads from https to something else")
        url = target
    raise Refused(f"more than {MAX_REDIRECTS} redirects")


def _request(
    parts: SplitResult,
    body: bytes,
    headers: Mapping[str, str],
    deadline: float,
    resolve: Resolver,
    allow_private: bool,
) -> tuple[int, str | None]:
    """One request; its status and Location.

    Raises:
        Refused, OSError, HTTPException.
    """
    host = _host(parts)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        addresses = resolve(host, port)
    except UnicodeError:
        raise Refused("a webhook's URL names no possible host") from None
    if not allow_private and not all(is_public(address) for address in addresses):
        raise Refused("a webhook must not go to a private address")

    raw = _connect(addresses, port, deadline)
    # The timeout of a socket is for one read; a server that sends a byte now and then would hold us forever. The
    # timer ends the connection itself, through a second handle, so that TLS notices nothing but an end.
    handle = raw.dup()
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), _shut, [handle])
    timer.daemon = True
    timer.start()
    try:
        if parts.scheme == "https":
            raw = ssl.create_default_context().wrap_socket(raw, server_hostname=host)
        connection = http.client.HTTPConnection(host, port)
        connection.auto_open = False  # it must not connect by itself, to an address that nobody checked
        connection.sock = raw
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        query = "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?") if parts.query else ""
        connection.request("POST", path + query, body, {"Host": _host_header(parts), "Connection": "close", **headers})
        answer = connection.getresponse()
        _left(deadline)  # an end that the timer made looks like the end of the headers
        with answer, suppress(OSError, http.client.HTTPException):  # the status is known: the rest is courtesy
            answer.read(MAX_ANSWER)
        return answer.status, answer.getheader("Location")
    finally:
        timer.cancel()
        handle.close()
        raw.close()


def _connect(addresses: Sequence[str], port: int, deadline: float) -> socket.socket:
    """Connect to the first address that answers.

    Raises:
        OSError.
    """
    failure = OSError("the name has no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout=_left(deadline))
        except OSError as error:
            failure = error
    raise failure


def _left(deadline: float) -> float:
    """Seconds until then.

    Raises:
        TimeoutError.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer in time")
    return left


def _shut(handle: socket.socket) -> None:
    with suppress(OSError):
        handle.shutdown(socket.SHUT_RDWR)


def _split(url: str) -> SplitResult:
    """The parts of a URL that may be called.

    Raises:
        Refused.
    """
    if len(url) > 2048 or any(c.isspace() or not c.isprintable() for c in url):
        raise Refused("a webhook's URL has at most 2048 characters, and no blanks")
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not _host(parts) or parts.port == 0:
            raise Refused("a webhook's URL begins with http:// or https:// and a host")
    except ValueError:  # of the port, the brackets, or the name
        raise Refused("a webhook's URL begins with http:// or https:// and a host") from None
    if "@" in parts.netloc:
        raise Refused("a webhook's URL holds no user name and no password")
    return parts


def _host(parts: SplitResult) -> str:
    return (parts.hostname or "").encode("idna").decode()


def _host_header(parts: SplitResult) -> str:
    host = _host(parts)
    name = f"[{host}]" if ":" in host else host
    return name if parts.port is None else f"{name}:{parts.port}"

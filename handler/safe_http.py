"""Requests to an address that a stranger chose: a webhook's POST, a picture's GET.

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
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

MAX_REDIRECTS = 3
#: Bytes of an answer that are read; what it says does not matter.
MAX_ANSWER = 64 * 1024
_CHUNK = 64 * 1024
_REDIRECTS = (301, 302, 307, 308)
#: Gives the IP addresses of a host name and port; may raise OSError.
Resolver = Callable[[str, int], Sequence[str]]


class Refused(Exception):
    """The URL, or where it leads, is not called: wrong scheme, or an address that is not public."""


class NotFetched(Exception):
    """The server did not give the file: no answer, an error, not in time, cut off."""


class NotWritten(OSError):
    """There is no room here for the file."""


class TooLong(Exception):
    """The file has more bytes than are taken."""


@dataclass(frozen=True)
class Fetched:
    """What a server said of a file.

    Attributes:
        media_type: in lower case; empty where it did not say.
        name: of the file, by Content-Disposition or the URL; empty where neither has one.
    """

    media_type: str
    name: str


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
                raise Refused("the URL leads to a private address")
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
        with _exchange("POST", _split(url), body, headers, deadline, resolve, allow_private) as answer:
            with suppress(OSError, http.client.HTTPException):  # the status is known: the rest is courtesy
                answer.read(MAX_ANSWER)
            location = answer.getheader("Location")
            if answer.status not in _REDIRECTS or not location:
                return answer.status
        url = _redirected(url, location)
    raise Refused(f"more than {MAX_REDIRECTS} redirects")


def fetch(
    url: str, target: BinaryIO, most: int, deadline: float, *, allow_private: bool, resolve: Resolver = resolve
) -> Fetched:
    """Download a file, redirects followed.

    Args:
        url: http or https.
        target: is written to while the file comes in.
        most: bytes; what is longer is given up at the byte that is too many, unpacked where the server packs it.
        deadline: of `time.monotonic`, until when it must be here.
        allow_private: do not check addresses.
        resolve: names to addresses.

    Raises:
        Refused: the URL, or where it leads, is not called.
        NotFetched: the server gives no file, or not all of it, or not in time.
        TooLong, NotWritten.
    """
    headers = {"Accept": "image/*, */*;q=0.1", "Accept-Encoding": "identity", "User-Agent": "serverless-upscaler"}
    try:
        for _ in range(MAX_REDIRECTS + 1):
            with _exchange("GET", _split(url), None, headers, deadline, resolve, allow_private) as answer:
                location = answer.getheader("Location")
                if answer.status not in (*_REDIRECTS, 303) or not location:
                    return _receive(url, answer, target, most, deadline)
            url = _redirected(url, location)
    except NotWritten:
        raise
    except (OSError, http.client.HTTPException, zlib.error) as error:
        if time.monotonic() >= deadline:
            raise NotFetched("the server did not give it in time") from error
        raise NotFetched(f"the server does not answer as it should: {type(error).__name__}") from error
    raise Refused(f"more than {MAX_REDIRECTS} redirects")


def _receive(url: str, answer: http.client.HTTPResponse, target: BinaryIO, most: int, deadline: float) -> Fetched:
    """Write the body of an answer to a file.

    Raises:
        NotFetched, TooLong, NotWritten, OSError, HTTPException, zlib.error.
    """
    if answer.status != 200:
        raise NotFetched(f"the server answered {answer.status}")
    if (answer.length or 0) > most:
        raise TooLong
    size = 0
    for piece in _unpacked(answer, answer.getheader("Content-Encoding", "").strip().lower()):
        size += len(piece)
        if size > most:
            raise TooLong
        try:
            target.write(piece)
        except OSError as error:
            raise NotWritten(str(error)) from error
    _left(deadline)  # an end that the timer made looks like the end of the file
    if answer.length:
        raise NotFetched("the file ends before its declared length: it was cut off on the way")
    name = answer.headers.get_filename() or unquote(urlsplit(url).path.rpartition("/")[2])
    media_type = answer.headers.get_content_type() if "Content-Type" in answer.headers else ""
    return Fetched(media_type, name)


def _unpacked(answer: http.client.HTTPResponse, encoding: str) -> Iterator[bytes]:
    """The body in pieces; some servers pack it although they were asked not to."""
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise NotFetched(f"the server sends it packed as {encoding[:20]}, although it was asked not to")
    unpack = zlib.decompressobj(wbits=47) if encoding not in ("", "identity") else None  # 47: gzip or zlib
    while piece := answer.read(_CHUNK):
        if unpack is None:
            yield piece
        while unpack and piece:
            yield unpack.decompress(piece, _CHUNK)
            piece = unpack.unconsumed_tail
    if unpack:
        yield unpack.flush()
        if not unpack.eof:
            raise NotFetched("the file ends in the middle: it was cut off on the way")


def _redirected(url: str, location: str) -> str:
    """Where a redirect leads.

    Raises:
        Refused: from https to something else, or to no URL at all.
    """
    try:
        target = urljoin(url, location)
        scheme = urlsplit(target).scheme
    except ValueError:
        raise Refused("a redirect leads to what is no URL") from None
    if urlsplit(url).scheme == "https" and scheme != "https":
        raise Refused("a redirect leads from https to something else")
    return target


@contextmanager
def _exchange(
    method: str,
    parts: SplitResult,
    body: bytes | None,
    headers: Mapping[str, str],
    deadline: float,
    resolve: Resolver,
    allow_private: bool,
) -> Iterator[http.client.HTTPResponse]:
    """One request, and its answer while the body is read.

    Raises:
        Refused, OSError, HTTPException.
    """
    host = _host(parts)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        addresses = resolve(host, port)
    except UnicodeError:
        raise Refused("the URL names no possible host") from None
    if not allow_private and not all(is_public(address) for address in addresses):
        raise Refused("the URL leads to a private address")

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
        sent = {"Host": _host_header(parts), "Connection": "close", **headers}
        connection.request(method, path + query, body, sent)
        answer = connection.getresponse()
        _left(deadline)  # an end that the timer made looks like the end of the headers
        with answer:
            yield answer
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
        raise Refused("a URL has at most 2048 characters, and no blanks")
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not _host(parts) or parts.port == 0:
            raise Refused("a URL begins with http:// or https:// and a host")
    except ValueError:  # of the port, the brackets, or the name
        raise Refused("a URL begins with http:// or https:// and a host") from None
    if "@" in parts.netloc:
        raise Refused("a URL holds no user name and no password")
    return parts


def _host(parts: SplitResult) -> str:
    return (parts.hostname or "").encode("idna").decode()


def _host_header(parts: SplitResult) -> str:
    host = _host(parts)
    name = f"[{host}]" if ":" in host else host
    return name if parts.port is None else f"{name}:{parts.port}"

"""Fetches pictures that clients name by links, from hosts that the operator allows.

A server that follows any link can reach what its clients cannot. The host must therefore be listed,
each redirect counts as a link of its own, and an address that is not public must be listed itself.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Collection
from functools import cache
from typing import Any

import httpx

from engine.errors import InvalidParameter, UnsupportedFeature
from server.images.store import ImageStore
from server.protocol.image_inputs import ImageReference, UploadedImage

_TIMEOUT_S = 10.0
_MAX_REDIRECTS = 3
_LAST_PORT = 0xFFFF
_OWN_FILE = re.compile(r"(https?://[^/?#]*)?/([^?#]*/)?v1/images/files/(?P<name>[0-9a-f]+\.[a-z]+)")


class PictureLinks:
    """The links that this server follows.

    Args:
        hosts: names and addresses from which pictures are fetched.
        store: the server's own pictures, whose names are secrets; they need no fetching.
        max_bytes: limit of a file.
    """

    def __init__(self, hosts: Collection[str], store: ImageStore, max_bytes: int) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._store = store
        self._max_bytes = max_bytes

    async def follow(self, reference: ImageReference, param: str) -> ImageReference:
        """The picture that a link leads to; a reference that is no link stays as it is.

        Raises:
            UnsupportedFeature: the operator does not allow the host.
            InvalidParameter: there is no picture, or it takes too many bytes or too much time.
        """
        url = reference.image_url
        if isinstance(reference, UploadedImage) or url is None:
            return reference
        own = _OWN_FILE.fullmatch(url) if len(url) < 4096 else None
        stored = None if own is None else self._store.get(own["name"])
        if stored is not None:
            return _file(stored.data)
        if not url[:8].lower().startswith(("http:", "https:")):
            return reference
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return _file(await self._fetch(url, param))
        except TimeoutError:
            raise _failed(param, f"did not arrive within {_TIMEOUT_S:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError):
            raise _failed(param, "cannot be fetched") from None

    async def _fetch(self, url: str, param: str) -> bytes:
        # Reading the certificates takes tens of milliseconds.
        tls = await asyncio.to_thread(_tls)
        async with httpx.AsyncClient(verify=tls, trust_env=False) as client:
            link = httpx.URL(url)
            for _ in range(_MAX_REDIRECTS + 1):
                async with client.stream(**await self._question(link, param)) as answer:
                    if answer.has_redirect_location:
                        link = link.join(answer.headers["location"])
                        continue
                    if answer.status_code != 200:
                        raise _failed(param, f"was answered with status {answer.status_code}")
                    data = bytearray()
                    async for part in answer.aiter_raw():
                        data += part
                        if len(data) > self._max_bytes:
                            raise _failed(param, f"has more than {self._max_bytes} bytes")
                    return bytes(data)
        raise _failed(param, f"is redirected more than {_MAX_REDIRECTS} times")

    async def _question(self, link: httpx.URL, param: str) -> dict[str, Any]:
        """The request for a link, at an address that has been checked."""
        host = link.host.lower()
        if link.scheme not in ("http", "https") or link.userinfo or host not in self._hosts:
            raise UnsupportedFeature(
                f"this server does not fetch links from {host or 'there'}; send the image as a "
                "data URL, or let the operator allow the host with --allowed-media-domains",
                param=param,
            )
        if (link.port or 0) > _LAST_PORT:
            raise _failed(param, "cannot be fetched")
        found = await asyncio.get_running_loop().getaddrinfo(
            host, link.port, type=socket.SOCK_STREAM
        )
        address = str(found[0][4][0])
        if not _is_public(address) and address not in self._hosts:
            raise _failed(param, "has an address that is not public")
        return {
            "method": "GET",
            "url": link.copy_with(host=address),
            "headers": {"Host": link.netloc.decode(), "Accept-Encoding": "identity"},
            "extensions": {"sni_hostname": host},
        }


@cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return (getattr(ip, "ipv4_mapped", None) or ip).is_global


def _file(data: bytes) -> UploadedImage:
    return UploadedImage(image_url=None, file_id=None, data=data)


def _failed(param: str, reason: str) -> InvalidParameter:
    return InvalidParameter(
        f"{param}: the image at the link {reason}; send it as a data URL", param=param
    )

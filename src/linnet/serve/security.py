# SPDX-License-Identifier: Apache-2.0
"""Who may talk to the server: keys, Host and Origin, and what separates the prefix caches of different keys."""

import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Iterable

from linnet.errors import ConfigError
from linnet.serve.errors import forbidden, unauthorised

PUBLIC_ROUTES = frozenset({"/health", "/live"})
"""The only paths with anything to tell that answer without a key: readiness and liveness, for orchestrators."""

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(?::[0-9]{1,5})?")
_ORIGIN = re.compile(r"https?://(.{1,300})")


class Keys:
    """The accepted API keys, as digests; every comparison looks at all of them in constant time."""

    def __init__(self, keys: Iterable[str], secret: bytes | None = None) -> None:
        """``secret``: what salts are made with, where they must be the same in the next process; None: a new one."""
        self._digests = tuple(_digest(key.encode()) for key in keys)
        self._secret = secrets.token_bytes(32) if secret is None else secret  # salts are never predictable

    @property
    def required(self) -> bool:
        """Whether a key is asked for at all."""
        return bool(self._digests)

    def check(self, authorisation: list[bytes]) -> bytes:
        """The prefix-cache salt of the key in the Authorization headers. Raises ApiError 401."""
        if not self._digests:
            return self._salt(b"")
        scheme, _, key = (authorisation[0] if len(authorisation) == 1 else b"").partition(b" ")
        digest = _digest(key.strip(b" "))
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        if not found or scheme.lower() != b"bearer":
            raise unauthorised()
        return self._salt(digest)

    def _salt(self, digest: bytes) -> bytes:
        return hmac.digest(self._secret, digest, "sha256")


def narrower_salt(salt: bytes, wish: str | None) -> bytes:
    """A client may split its own cache further with ``cache_salt``; it can never reach another key's."""
    return salt if not wish else hmac.digest(salt, wish.encode("utf-8"), "sha256")


class Hosts:
    """The Host allow-list, which is what stops DNS rebinding; and Origin, which is what stops web pages."""

    def __init__(self, bind_host: str, allowed: Iterable[str] = ()) -> None:
        names = {name.strip().strip("[]").lower() for name in allowed}
        self._loopback = is_loopback(bind_host)
        self._names = names | LOOPBACK_NAMES
        if not self._loopback:
            self._names |= {bind_host.lower(), socket.gethostname().lower()}

    def check(self, hosts: list[bytes], origins: list[bytes]) -> None:
        """Raises ApiError 403. Exactly one Host; at most one Origin, and then one of ours."""
        if len(hosts) != 1 or not self._accepts(hosts[0].decode("latin-1")):
            raise forbidden("this Host is not served here; an operator can allow it with --allowed-host")
        for origin in origins:
            match = _ORIGIN.fullmatch(origin.decode("latin-1"))
            if match is None or not self._accepts(match.group(1)):
                raise forbidden("requests from this web origin are not accepted")

    def _accepts(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = (match.group(1) or match.group(2)).lower().removesuffix(".")
        # A literal address cannot be rebound, so a server that listens to the world answers to its addresses.
        return name in self._names or (not self._loopback and _is_address(name))


def check_bind(host: str, keys: Iterable[str]) -> None:
    """Raises ConfigError for an address that others can reach, without a key."""
    if not is_loopback(host) and not tuple(keys):
        raise ConfigError(
            f"--host {host} can be reached from other machines and there is no API key; give --api-key-file or "
            "LINNET_API_KEY, or use --host 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reachable from this machine only; an unknown name counts as reachable."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

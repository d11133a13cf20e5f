# SPDX-License-Identifier: Apache-2.0
"""Where a server of OpenAI's API is."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from linnet.errors import ConfigError


@dataclass(frozen=True)
class Address:
    """Where a server is: what stands before ``/v1``, and the key it asks for."""

    host: str
    port: int
    secure: bool
    prefix: str
    key: str | None

    @classmethod
    def of(cls, url: str, key: str | None = None) -> "Address":
        """Raises ConfigError for what is no http or https address."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise ConfigError(f"the address is {url[:200]!r}; accepted is http://HOST:PORT or https://HOST")
        secure = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if secure else 80), secure, prefix, key)

    def __str__(self) -> str:
        """What people know it by; never the key."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.secure else ''}://{host}:{self.port}{self.prefix}"


def is_address(text: str) -> bool:
    """Whether this is a URL and no model."""
    return text.startswith(("http://", "https://"))

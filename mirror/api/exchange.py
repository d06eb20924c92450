"""What is known of a request while it is answered: for its log line, its metrics and its headers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from aiohttp import web

from mirror.api.forwarded import Forwarded
from mirror.api.ready import Key
from mirror.pull import Lasting


@dataclass(slots=True)
class Exchange:
    """Filled in as the request is understood and answered. `result` is a value of X-Cache, or error or refused."""

    request_id: str
    forwarded: Forwarded
    namespace: str | None = None
    """The `ns=` by which the upstream was chosen, as the client wrote it; answers repeat it as OCI-Namespace."""
    prefix: str = ""
    """The path under which this client sees us, decoded, without a final slash: links to us have it before `/v2/`."""
    started: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    upstream: str = "none"
    """The configured entry, for metrics."""
    repository: str | None = None
    kind: str = "none"
    result: str = "none"
    status: int = 0
    promised: int = 0
    """Bytes of a body that is streamed, as its headers have them."""
    sent: int = 0
    """Body bytes that went out."""
    step: asyncio.Future[int] | None = None
    """Sends body bytes in a thread, and may outlive the request."""
    first_byte: float | None = None
    """Seconds from the request to the headers of its answer."""
    key: Key | None = None
    """All that decides the answer, if a key can hold it."""
    lasting: Lasting | None = None
    """How long the same answer can then be given again, if at all."""
    failure: str | None = None
    """Why there was no answer, or only part of it."""

    def elapsed(self) -> float:
        """Seconds since the request came."""
        return asyncio.get_running_loop().time() - self.started

    @property
    def is_whole(self) -> bool:
        """Whether a streamed body went out to its end."""
        return self.promised > 0 and self.sent == self.promised


EXCHANGE = web.RequestKey("exchange", Exchange)

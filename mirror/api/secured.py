"""TLS between a client's TCP connection and the protocol that serves it, from the first byte on and in bounded time.

Not asyncio's own: that tells a client nothing of why a handshake failed, calls an answer sent that it still holds, and
has no FIN after less than was promised. All of this is here as it is without TLS: what was written is with the kernel,
or the writer waits; and each direction can end by itself.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Callable
from typing import Any

import structlog

from mirror.api.connections import HttpServer
from mirror.api.responses import refusal

_HELLO = 0x16
"""The first byte of every TLS connection; no HTTP request begins with it."""
_UNCOUNTED = 256
"""Clients who may be on their way at a time although there is no place for them, to hear that; others are cut off."""
_PLAIN_TEXT = "this port speaks TLS: use https://"
_PLAIN = refusal(400, "UNSUPPORTED", _PLAIN_TEXT)
_READ = 256 << 10
_SLICE = 64 << 10
"""Bytes that are encrypted at a time. The library's buffer keeps the size that it once had, for each connection."""
_LINGER_SECONDS = 2.0
"""For a client to read why it is not let in."""
_log = structlog.get_logger()


class Entrance:
    """Makes the protocols of clients who come to `server`: over TLS where there is a context for it.

    On the way there each has the time that the head of a request may take, and counts as a connection.
    """

    def __init__(self, server: HttpServer, context: ssl.SSLContext | None) -> None:
        self.server = server
        self.context = context
        """For those who come from now on; may be replaced at any time."""
        self.uncounted = 0
        self.arriving: set[SecuredTransport] = set()

    def __call__(self) -> asyncio.Protocol:
        """The protocol of one more of them."""
        return self.server() if self.context is None else SecuredTransport(self, self.context)

    def close(self) -> None:
        """Cuts off those who have not got in yet."""
        for arrival in list(self.arriving):
            arrival.abort()


class SecuredTransport(asyncio.Transport, asyncio.Protocol):
    """To the TCP connection a protocol; a transport to the protocol that serves it, made after the handshake."""

    def __init__(self, entrance: Entrance, context: ssl.SSLContext) -> None:
        super().__init__()
        self._entrance = entrance
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._tcp: asyncio.Transport
        self._address = ""
        self._counts = False
        self._timer: asyncio.TimerHandle | None = None
        self._protocol: asyncio.Protocol | None = None
        self._failed = False
        self._reads = True
        self._heard_all = False
        self._said_all = False
        self._waits = False
        """Whether the kernel takes no more for now."""
        self._lent = False
        self._unread = bytearray()
        """What has come since it was."""

    # From the TCP connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        entrance, self._tcp = self._entrance, transport
        transport.set_write_buffer_limits(high=0)
        peer = transport.get_extra_info("peername")
        self._address = peer[0] if isinstance(peer, tuple) else ""
        self._counts = entrance.server.admission.come(self._address)
        if not self._counts and entrance.uncounted >= _UNCOUNTED:
            transport.abort()
            return
        entrance.arriving.add(self)
        entrance.uncounted += not self._counts
        self._timer = self._loop.call_later(entrance.server.limits.request, self._fail, "it took too long")

    def data_received(self, data: bytes) -> None:
        if self._failed or self._said_all:
            return
        if self._lent:
            self._unread += data
            if len(self._unread) >= _READ:
                self._tcp.pause_reading()
            return
        if self._tls is None:
            if data[0] != _HELLO:
                self._tell(data)
                return
            self._tls = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._incoming.write(data)
        if self._protocol is not None or self._shake_hands(self._tls):
            self._read()

    def eof_received(self) -> bool:
        if self._protocol is None:
            self._tcp.close()
        else:
            self._hear_end()
        return True  # when to close is decided here

    def connection_lost(self, exc: BaseException | None) -> None:
        self._arrived()
        if self._protocol is not None:
            self._protocol.connection_lost(exc)  # type: ignore[arg-type]  # asyncio's own: any exception
        else:
            self._leave()

    def pause_writing(self) -> None:
        self._waits = True
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._waits = False
        if self._protocol is not None:
            self._protocol.resume_writing()

    # The handshake.

    def _shake_hands(self, tls: ssl.SSLObject) -> bool:
        """Goes on with it; whether it is over and there is a connection."""
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            self._fail(error.reason or "no TLS")
            return False
        self._arrived()
        self._protocol = self._entrance.server(self._address if self._counts else None)
        self._protocol.connection_made(self)
        if self._waits:
            self._protocol.pause_writing()
        self._flush()
        return True

    def _arrived(self) -> None:
        """It is on its way no longer, whatever has become of it."""
        if self._timer is not None:
            self._timer.cancel()
        if self in self._entrance.arriving:
            self._entrance.arriving.remove(self)
            self._entrance.uncounted -= not self._counts

    def _leave(self) -> None:
        if self._counts:
            self._counts = False
            self._entrance.server.admission.leave(self._address)

    def _fail(self, reason: str) -> None:
        """Says so, in an alert that the library has ready where it knows one, and hears no more."""
        _log.info("a client did not get to TLS", client=self._address, reason=reason)
        self._failed = True
        self._flush()
        self._tcp.write_eof()
        # Closed with unread bytes it would be a reset, which can overtake the alert.
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(_LINGER_SECONDS, self._tcp.abort)

    def _tell(self, data: bytes) -> None:
        """The client speaks HTTP, and understands an answer in it."""
        server = self._entrance.server
        server.malformed(self._address, 400, _PLAIN_TEXT)
        self._arrived()
        self._leave()
        server.admission.turn_away(self._tcp, _PLAIN)
        protocol = self._tcp.get_protocol()
        if isinstance(protocol, asyncio.Protocol) and protocol is not self:
            protocol.data_received(data)

    # Bytes.

    def _read(self) -> None:
        """Gives what has come to the protocol."""
        assert self._tls is not None
        if self._lent:
            return
        while self._reads and not (self._heard_all or self._said_all or self._tcp.is_closing()):
            try:
                data = self._tls.read(_READ)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError:
                self._tcp.abort()  # what comes is none of the client's words
                return
            if not data:
                self._hear_end()
                break
            assert self._protocol is not None
            self._protocol.data_received(data)
        self._flush()  # reading may have something to say, such as that keys change

    def _hear_end(self) -> None:
        if self._heard_all or self._protocol is None:
            return
        self._heard_all = True
        if not self._protocol.eof_received():
            self.close()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._tcp.write(self._outgoing.read())

    def _encrypt(self, data: bytes | bytearray | memoryview) -> bytes:
        assert self._tls is not None
        sealed, left = [], memoryview(data)
        while left:
            left = left[self._tls.write(left[:_SLICE]) :]
            sealed.append(self._outgoing.read())
        return b"".join(sealed)

    def _say_end(self) -> None:
        """The library's `unwrap` says that nothing more comes, and wants to hear the same."""
        if self._said_all or self._tls is None:
            return
        self._said_all = True
        if self._lent:
            return  # and a client who has not got everything does not hear that it has
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # its own part is said by then
        self._flush()

    # A thread that encrypts. OpenSSL allows for one at a time to work on a connection.

    def lend(self) -> None:
        """Leaves the connection to a thread that writes to the socket what `seal` gives it.

        Until it is taken back nothing is read and nothing else may be written; that the client leaves is noticed.
        """
        assert not self._lent, "lent twice"
        self._lent = True

    def seal(self, data: bytes) -> bytes:
        """Encrypts, in that thread. Raises ConnectionError where that is not possible any more."""
        try:
            return self._encrypt(data)
        except ssl.SSLError as error:
            raise ConnectionAbortedError(errno.ECONNABORTED, "TLS has ended") from error

    def take_back(self) -> None:
        """Goes on as before."""
        self._lent = False
        unread, self._unread = bytes(self._unread), bytearray()
        if self._tcp.is_closing():
            return
        if len(unread) >= _READ and self._reads:
            self._tcp.resume_reading()
        if unread:
            self.data_received(unread)

    # To the protocol that serves.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypts and sends; what the kernel does not take makes the writer wait."""
        if self._said_all or self._lent or self._tcp.is_closing():
            return
        self._tcp.write(self._encrypt(data))

    def can_write_eof(self) -> bool:
        """As without TLS."""
        return self._tcp.can_write_eof()

    def write_eof(self) -> None:
        """Says, in TLS' words and by a FIN, that nothing more comes; what the client sends is read and dropped."""
        self._say_end()
        self._tcp.write_eof()

    def close(self) -> None:
        """Says that nothing more comes, sends what is left, and closes."""
        if not self._tcp.is_closing():
            self._say_end()
            self._tcp.close()

    def abort(self) -> None:
        """Closes at once."""
        self._tcp.abort()

    def is_closing(self) -> bool:
        """Whether it is closed, or will be once everything is sent."""
        return self._tcp.is_closing()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Another protocol for what comes from now on."""
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol that serves."""
        assert self._protocol is not None
        return self._protocol

    def is_reading(self) -> bool:
        """Whether what comes is given to the protocol."""
        return self._reads

    def pause_reading(self) -> None:
        """Gives the protocol nothing more for now."""
        self._reads = False
        self._tcp.pause_reading()

    def resume_reading(self) -> None:
        """Goes on with it."""
        if not self._reads:
            self._reads = True
            self._tcp.resume_reading()
            self._loop.call_soon(self._read)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As without TLS, in encrypted bytes."""
        self._tcp.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """As without TLS."""
        return self._tcp.get_write_buffer_limits()

    def get_write_buffer_size(self) -> int:
        """Encrypted bytes that the kernel has not taken."""
        return self._tcp.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """That of the TCP connection, and `ssl_object`, `sslcontext`, `peercert`."""
        own: dict[str, Callable[[ssl.SSLObject], Any]] = {
            "ssl_object": lambda tls: tls,
            "sslcontext": lambda tls: tls.context,
            "peercert": lambda tls: tls.getpeercert(),
        }
        if name in own and self._tls is not None:
            return own[name](self._tls)
        return self._tcp.get_extra_info(name, default)

"""Clients that read blobs, many at once in one process; bytes are counted and dropped."""

from __future__ import annotations

import selectors
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from bench.image import BenchFailed, Blob
from tests.upstream.certificates import client_tls

STALL_SECONDS = 30.0
_BUFFER = 1 << 20
_HEAD_LIMIT = 16 << 10
_LEAD_SECONDS = 0.3
_RECORDS = 64
"""TLS records that one connection may take before the next one has its turn."""


@dataclass(frozen=True, slots=True)
class Flow:
    """What came in over all connections together; `clock` is what the caller's clock went on meanwhile."""

    size: int
    seconds: float
    clock: float


@dataclass(frozen=True, slots=True)
class Reading:
    """One client's blob: seconds from its request until the first and until the last byte."""

    first_byte: float
    total: float


class Unfinished(BenchFailed):
    """Time was over before every client had its blob."""


def flow(
    port: int,
    blob: Blob,
    connections: int,
    seconds: float,
    clock: Callable[[], float],
    *,
    tls: bool = False,
    discard: bool = False,
) -> Flow:
    """Reads a blob again and again over each of so many connections. Raises BenchFailed.

    `discard`: the kernel drops the bytes without a copy, so that reading takes next to no time from a server on the
    same cores; not over TLS.

    The count begins when the connections' buffers have had time to fill, and ends while they are full.
    """
    with ExitStack() as stack:
        readers = [stack.enter_context(_Reader(port, blob, tls=tls, discard=discard)) for _ in range(connections)]
        selector = _registered(stack, readers)
        for reader in readers:
            reader.ask()
        buffer = memoryview(bytearray(_BUFFER))
        _turns(selector, buffer, until=time.perf_counter() + min(_LEAD_SECONDS, seconds))
        before, began, count = clock(), time.perf_counter(), sum(reader.taken for reader in readers)
        _turns(selector, buffer, until=began + seconds)
        # The clock first: to add up takes no time from the server.
        used, ended = clock() - before, time.perf_counter()
        return Flow(sum(reader.taken for reader in readers) - count, ended - began, used)


def read(
    port: int, blobs: Sequence[Blob], *, tls: bool = False, seconds: float | None = None, discard: bool = False
) -> list[Reading]:
    """A client for each of these blobs, all at once, each to its end; `discard` as for `flow`.

    Raises BenchFailed, Unfinished among them where `seconds` have passed.
    """
    with ExitStack() as stack:
        readers = [stack.enter_context(_Reader(port, blob, tls=tls, discard=discard)) for blob in blobs]
        selector = _registered(stack, readers)
        began = time.perf_counter()
        for reader in readers:
            reader.ask(last=True)
        limit = None if seconds is None else began + seconds
        _turns(selector, memoryview(bytearray(_BUFFER)), until=limit)
        if unfinished := sum(reader.ended is None for reader in readers):
            total = sum(blob.size for blob in blobs)
            taken = sum(reader.taken for reader in readers)
            raise Unfinished(
                f"after {seconds:g} s {unfinished} of {len(readers)} clients were waiting, with "
                f"{100 * taken / total:.0f} % of all bytes"
            )
        return [reader.reading() for reader in readers]


def first_bytes(port: int, blobs: Sequence[Blob]) -> list[float]:
    """Reads these blobs one after the other over one connection; seconds until the first byte of each."""
    found = []
    buffer = memoryview(bytearray(_BUFFER))
    with ExitStack() as stack:
        reader = stack.enter_context(_Reader(port, blobs[0], tls=False))
        selector = _registered(stack, [reader])
        for blob in blobs:
            reader.turn_to(blob)
            reader.ask(last=True)
            while not reader.take(buffer):
                if not selector.select(STALL_SECONDS):
                    raise BenchFailed(f"GET {blob.path}: no byte in {STALL_SECONDS:g} s")
            found.append(reader.reading().first_byte)
    return found


def _registered(stack: ExitStack, readers: Sequence[_Reader]) -> selectors.BaseSelector:
    selector = stack.enter_context(selectors.DefaultSelector())
    for reader in readers:
        selector.register(reader.socket, selectors.EVENT_READ, reader)
    return selector


def _turns(selector: selectors.BaseSelector, buffer: memoryview, *, until: float | None) -> None:
    """Lets all readers take what is there until they have done or time is over."""
    while selector.get_map():
        left = STALL_SECONDS if until is None else min(STALL_SECONDS, until - time.perf_counter())
        if until is not None and left <= 0:
            return
        ready = selector.select(left)
        if not ready and left == STALL_SECONDS:
            raise BenchFailed(f"no byte in {STALL_SECONDS:g} s")
        for key, _ in ready:
            if key.data.take(buffer):
                selector.unregister(key.fileobj)


class _Reader:
    """One connection, and how much of the present answer is still to come."""

    def __init__(self, port: int, blob: Blob, *, tls: bool, discard: bool = False) -> None:
        self.taken = 0
        """Bytes of bodies."""
        self.ended: float | None = None
        plain = socket.create_connection(("127.0.0.1", port), timeout=STALL_SECONDS)
        self.socket = client_tls().wrap_socket(plain, server_hostname="127.0.0.1") if tls else plain
        self.socket.setblocking(False)
        self._host = f"127.0.0.1:{port}"
        self._path, self._head, self._size = "", b"", 0
        self.turn_to(blob)
        self._last = False
        self._left = 0
        self._headers: bytearray | None = None
        self._asked = 0.0
        self._first: float | None = None
        self._receive = self._receive_records if tls else self._discard if discard else self._receive_once

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def turn_to(self, blob: Blob) -> None:
        """What to ask for from now on."""
        self._path, self._size = blob.path, blob.size
        self._head = f"GET {blob.path} HTTP/1.1\r\nHost: {self._host}\r\nAccept: */*\r\n\r\n".encode()

    def ask(self, *, last: bool = False) -> None:
        """Sends the next request, small enough never to block; after the last one the reader has done."""
        self._last = last
        self.ended = None
        self._headers = bytearray()
        self._asked = time.perf_counter()
        self._first = None
        self.socket.send(self._head)

    def take(self, buffer: memoryview) -> bool:
        """Takes what is there; whether that was the end of the last answer. Raises BenchFailed."""
        return self._receive(buffer)

    def reading(self) -> Reading:
        """Of the last blob."""
        assert self.ended is not None
        assert self._first is not None
        return Reading(self._first - self._asked, self.ended - self._asked)

    def _receive_once(self, buffer: memoryview) -> bool:
        try:
            count = self.socket.recv_into(buffer)
        except BlockingIOError:
            return False
        return self._got(buffer[:count])

    def _discard(self, buffer: memoryview) -> bool:
        if self._headers is not None:
            return self._receive_once(buffer)
        try:
            count = self.socket.recv_into(buffer, min(self._left, len(buffer)), socket.MSG_TRUNC)
        except BlockingIOError:
            return False
        return self._got(buffer[:count])

    def _receive_records(self, buffer: memoryview) -> bool:
        for _ in range(_RECORDS):
            try:
                count = self.socket.recv_into(buffer)
            except ssl.SSLWantReadError:
                return False
            if self._got(buffer[:count]):
                return True
        return False

    def _got(self, piece: memoryview) -> bool:
        if not piece:
            raise BenchFailed(f"GET {self._path}: closed {self._left} bytes before the end")
        count = len(piece) if self._headers is None else self._begin(self._headers, piece)
        if count and self._first is None:
            self._first = time.perf_counter()
        self._left -= count
        self.taken += count
        if self._headers is not None or self._left > 0:
            return False
        if self._last:
            self.ended = time.perf_counter()
            return True
        self.ask()
        return False

    def _begin(self, headers: bytearray, piece: memoryview) -> int:
        """Looks for the end of the headers; returns the bytes of body that came behind them."""
        headers += piece
        end = headers.find(b"\r\n\r\n")
        if end < 0:
            if len(headers) > _HEAD_LIMIT:
                raise BenchFailed(f"GET {self._path}: headers without an end")
            return 0
        status, *fields = bytes(headers[:end]).lower().split(b"\r\n")
        if b" 200 " not in status + b" " or f"content-length: {self._size}".encode() not in fields:
            raise BenchFailed(f"GET {self._path}: not the blob: {bytes(headers[:end]).decode(errors='replace')}")
        self._headers = None
        self._left = self._size
        return len(headers) - end - 4

"""A node's images through CRI, as the kubelet asks for them: runtime.v1 ImageService over a Unix socket.

The four messages that it takes are written and read here, so that only grpcio is needed, from the extra `nodes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from mirror.nodes.errors import NodeError, Unusable

DEFAULT_ENDPOINT = "unix:///run/containerd/containerd.sock"
_ANSWER_SECONDS = 10.0
_BYTES = 2
"""What has a length: the wire type of strings and messages."""


class CriError(NodeError):
    """The runtime does not answer, refuses, or answers what nobody understands."""


def parse_endpoint(text: str) -> str:
    """The canonical `unix://` URL of a socket. Raises ValueError, whose message is what was expected."""
    path = text.removeprefix("unix://")
    if not path.startswith("/") or "\0" in path:
        raise ValueError("a Unix socket, as unix:///run/containerd/containerd.sock")
    return f"unix://{path}"


class Cri:
    """The runtime behind one socket. Every method raises CriError.

    Raises Unusable where grpcio is not installed.
    """

    def __init__(self, endpoint: str) -> None:
        try:
            import grpc
        except ImportError:
            raise Unusable("this needs grpcio, which the extra `nodes` brings: pip install grpcio") from None
        self._endpoint = endpoint
        self._failed = grpc.RpcError
        # Without a name in it the socket's path would be one, which Go's servers refuse.
        self._channel: Any = grpc.insecure_channel(endpoint, options=[("grpc.default_authority", "localhost")])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends what is under way, with CriError, and what comes."""
        self._channel.close()

    def version(self) -> str:
        """The runtime's name and version."""
        answer = self._ask("RuntimeService", "Version", b"", _ANSWER_SECONDS)
        return f"{_text(answer, 2)} {_text(answer, 3)}".strip()

    def holds(self, image: str) -> bool:
        """Whether the node has the image."""
        answer = self._ask("ImageService", "ImageStatus", _spec(image), _ANSWER_SECONDS)
        return any(number == 1 for number, _ in _fields(answer))

    def pull(self, image: str, *, seconds: float) -> str:
        """Pulls the image, for at most so long, and returns what the runtime calls it."""
        return _text(self._ask("ImageService", "PullImage", _spec(image), seconds), 1)

    def remove(self, image: str) -> None:
        """Removes the image; one that is not there is no error."""
        self._ask("ImageService", "RemoveImage", _spec(image), _ANSWER_SECONDS)

    def _ask(self, service: str, method: str, request: bytes, seconds: float) -> bytes:
        call = self._channel.unary_unary(f"/runtime.v1.{service}/{method}")
        try:
            answer: bytes = call(request, timeout=seconds)
        except self._failed as error:
            raise CriError(f"{self._endpoint}: {method}: {error.code().name}: {error.details()}") from None
        except ValueError as error:
            raise CriError(f"{self._endpoint}: {method}: {error}") from None  # closed meanwhile
        return answer


def _spec(image: str) -> bytes:
    """A request whose field 1 is an ImageSpec, whose field 1 is the name."""
    return _field(1, _field(1, image.encode()))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _text(message: bytes, wanted: int) -> str:
    """The last string with that number, as the format has it; empty where there is none."""
    found = [content for number, content in _fields(message) if number == wanted]
    return found[-1].decode(errors="replace") if found else ""


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """What has a length, by field number; numbers are passed over. Raises CriError where it makes no sense."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        match tag & 7:
            case 0:
                _, at = _read_varint(message, at)
                continue
            case 2:
                size, at = _read_varint(message, at)
            case 1:
                size = 8
            case 5:
                size = 4
            case _:
                raise CriError("the runtime's answer is no protobuf message")
        if at + size > len(message):
            raise CriError("the runtime's answer ends early")
        if tag & 7 == _BYTES:
            yield tag >> 3, message[at : at + size]
        at += size


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """The number there, and where the next thing begins."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise CriError("the runtime's answer ends early")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise CriError("the runtime's answer is no protobuf message")

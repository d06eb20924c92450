"""HTTP client behaviour: sends with time limits, redirects, retries and pauses. Knows nothing of registries."""

from mirror.transport.client import Transport
from mirror.transport.deadline import Deadline
from mirror.transport.request import Destination, Request
from mirror.transport.response import VIA, Response
from mirror.transport.stream import BlobStream

__all__ = ["VIA", "BlobStream", "Deadline", "Destination", "Request", "Response", "Transport"]

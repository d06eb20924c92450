"""HTTP client behaviour: sends with time limits, redirects, retries and pauses. Knows nothing of registries."""

from mirror.transport.client import Transport
from mirror.transport.deadline import Deadline
from mirror.transport.request import Destination, Request
from mirror.transport.response import Response

__all__ = ["Deadline", "Destination", "Request", "Response", "Transport"]

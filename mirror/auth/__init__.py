"""How we prove who we are to an upstream: challenges, credentials and tokens. Clients' credentials never come here."""

from mirror.auth.authenticator import Authenticator

__all__ = ["Authenticator"]

"""What an operator sets: from YAML and environment to frozen values."""

from mirror.config.fields import Address
from mirror.config.models import Settings, Storage, Timeouts, UpstreamSettings
from mirror.config.units import Amount
from mirror.config.wellknown import WELL_KNOWN

__all__ = ["WELL_KNOWN", "Address", "Amount", "Settings", "Storage", "Timeouts", "UpstreamSettings"]

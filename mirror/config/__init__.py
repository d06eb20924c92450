"""What an operator sets: from YAML and environment to frozen values."""

from mirror.config.describe import effective, settings_table
from mirror.config.fields import Address
from mirror.config.handing import pack, unpack
from mirror.config.load import load
from mirror.config.mistakes import ConfigError
from mirror.config.models import Settings, Storage, Timeouts, Tls, UpstreamSettings
from mirror.config.units import Amount
from mirror.config.wellknown import WELL_KNOWN

__all__ = [
    "WELL_KNOWN",
    "Address",
    "Amount",
    "ConfigError",
    "Settings",
    "Storage",
    "Timeouts",
    "Tls",
    "UpstreamSettings",
    "effective",
    "load",
    "pack",
    "settings_table",
    "unpack",
]

"""What an operator sets: from YAML and environment to frozen values."""

from mirror.config.certificates import certificate_ends
from mirror.config.changes import take_over
from mirror.config.checks import warnings
from mirror.config.describe import effective, settings_table
from mirror.config.docker_config import DockerConfig
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
    "DockerConfig",
    "Settings",
    "Storage",
    "Timeouts",
    "Tls",
    "UpstreamSettings",
    "certificate_ends",
    "effective",
    "load",
    "pack",
    "settings_table",
    "take_over",
    "unpack",
    "warnings",
]

"""Settings on their way from one of our processes to another: all of them, secrets included, so never into a file."""

from __future__ import annotations

import json

from mirror.config.fields import WRITTEN
from mirror.config.models import Settings


def pack(settings: Settings) -> str:
    """`settings` as text for `unpack`."""
    data = settings.model_dump(mode="json", by_alias=True, exclude_none=True)
    for entry, upstream in settings.upstreams.items():
        if upstream.password is not None:  # masked, as wherever else settings are shown
            data["upstreams"][entry]["password"] = upstream.password.get_secret_value()
    return json.dumps(data)  # and not msgspec: a path may have bytes that are no text


def unpack(text: str) -> Settings:
    """The settings that were packed."""
    return Settings.model_validate(json.loads(text), context=WRITTEN, by_alias=True, by_name=False)

"""What settings and arguments are made of: numbers and paths as people type them.

The functions are `type`s of argparse, whose mistakes are one line and status 2, as those of settings are.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from protocol.errors import ConfigError

Count = Annotated[int, Field(gt=0)]
Amount = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


def _checked_address(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:  # a port that is none raises
        raise ValueError(f"expected an address such as http://host:port/v1, got {address!r}")
    return address


Address = Annotated[str, AfterValidator(_checked_address)]
"""Where an HTTP server is."""


class Section(BaseModel):
    """One table of the settings file. Unknown keys are refused, and numbers that are none or have no end."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


def count(text: str) -> int:
    """A whole number of at least 1, as an argument's `type`."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return value


def amount(text: str) -> int:
    """A whole number of at least 0, as an argument's `type`."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return value


def positive(text: str) -> float:
    """A finite number above 0 (seconds, GiB), as an argument's `type`."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def expanded(path: str | Path) -> Path:
    """`path` with `~` as a shell would write it out. Raises `ConfigError` where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{path}: no home directory is known for the `~` in it (HOME is not set, or there is no such user): write "
            "the path in whole",
            kind="home",
        ) from error

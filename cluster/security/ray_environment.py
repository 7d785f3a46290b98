"""What Ray is told so that no stranger talks to it: a token, certificates, no open metrics. Every process that starts
Ray or joins it needs the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from cluster.security import certificates
from protocol.errors import ConfigError

FOLDER = "~/.longhaul/cluster"
"""Where `longhaul cluster up` leaves a host's credentials; `LONGHAUL_CLUSTER` names another."""


def folder() -> Path:
    """Of this host."""
    return Path(os.environ.get("LONGHAUL_CLUSTER") or FOLDER).expanduser()


def environment(place: str) -> dict[str, str]:
    """Variables for whoever starts Ray or joins it on a host whose credentials are in the folder `place`."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": f"{place}/token",
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": f"{place}/host.pem",
        "RAY_TLS_SERVER_KEY": f"{place}/host.key",
        "RAY_TLS_CA_CERT": f"{place}/authority.pem",
        # Ray's Prometheus endpoints know no protection, and listen everywhere: these two ports cannot be bound
        "RAY_enable_metrics_collection": "0",
        "AUTOSCALER_METRIC_PORT": "-1",
        "DASHBOARD_METRIC_PORT": "-1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def adopt(variables: MutableMapping[str, str]) -> None:
    """Use this host's credentials, unless the user has chosen his own."""
    place = folder()
    if "RAY_USE_TLS" not in variables and (place / "host.pem").is_file():
        for name, value in environment(str(place)).items():
            variables.setdefault(name, value)


def check_certificate(variables: Mapping[str, str], address: str) -> None:
    """Raises `ConfigError` for certificates that every other host would refuse.

    Args:
        address: under which others reach this host.
    """
    if variables.get("RAY_USE_TLS") != "1":
        return
    for name in ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"):
        if not Path(variables.get(name, "")).is_file():
            raise ConfigError(
                f"{name}={variables.get(name, '')}: no such file, and Ray's TLS is on (RAY_USE_TLS=1): run `longhaul "
                "cluster up` for this host",
                kind="tls",
            )
    certificate = Path(variables["RAY_TLS_SERVER_CERT"]).read_bytes()
    try:
        ends, names = certificates.ends_at(certificate), certificates.names_of(certificate)
    except ValueError as error:
        raise ConfigError(
            f"{variables['RAY_TLS_SERVER_CERT']} is no certificate with names ({error}): run `longhaul cluster up` "
            "again",
            kind="tls",
        ) from error
    if ends < datetime.now(UTC):
        raise ConfigError(
            f"{variables['RAY_TLS_SERVER_CERT']}: this host's certificate ended on {ends:%Y-%m-%d}: run `longhaul "
            "cluster up` again",
            kind="tls",
        )
    if address and address not in names:
        raise ConfigError(
            f"{variables['RAY_TLS_SERVER_CERT']} is for {', '.join(names)}, but others reach this host as {address}, "
            f"and would refuse it: name it so to `longhaul cluster up {address}`",
            kind="tls",
        )


def check_protection(variables: Mapping[str, str], addresses: Sequence[str], *, trusted: bool) -> None:
    """Raises `ConfigError` where the run's keys would cross a network in clear text, or anybody could join its Ray.

    Args:
        addresses: of all hosts of the cluster.
        trusted: the user says that the network is the run's alone.
    """
    beyond = [address for address in addresses if not _is_loopback(address)]
    if trusted or not beyond:
        return
    for is_on, what in (
        (variables.get("RAY_AUTH_MODE") == "token", "takes commands from anybody who reaches it (no token)"),
        (variables.get("RAY_USE_TLS") == "1", "carries the run's keys in clear text (no TLS)"),
    ):
        if not is_on:
            raise ConfigError(
                f"Ray on {', '.join(beyond[:3])}{' and others' if len(beyond) > 3 else ''} {what}: start its hosts by "
                "`longhaul cluster up HOSTS...`, or say with --network.trusted true that nobody else is on that "
                "network",
                kind="ray_unprotected",
            )


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"

"""What listens on a host, whose it is, and whether a stranger gets anywhere: asked of the kernel and of the sockets.

A socket is protected if it is bound to loopback, if it takes no TLS client without a certificate, or if it speaks ZMTP
with CURVE. Ray's agents speak HTTP in clear text to the processes of their own host alone, and ask for Ray's token:
told apart as `token`. What it is shown to be by trying counts, not what it was told to be.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

import psutil
from msgspec import Struct

_LISTEN = "0A"
_ANSWER_S = 20.0  # of a process that has other work
# ZMTP 3.1: signature, version, mechanism (20 bytes, padded), as-server, filler
_ZMTP_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)


class Listener(Struct, frozen=True, order=True):
    """One listening TCP socket."""

    owner: str  # the process's title or program, without what changes from run to run
    address: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether it can be reached from its own host alone."""
        return ip_address(self.address).is_loopback


def listeners(processes: Iterable[psutil.Process], net: Path) -> list[Listener]:
    """Of one network namespace.

    Args:
        processes: those that may own sockets there.
        net: its `/proc/PID/net`.
    """
    owners = {}
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            for link in Path(f"/proc/{process.pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if found := re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink())):
                        owners[found[1]] = owner_name(process.cmdline())
    listening = []
    for table in ("tcp", "tcp6"):
        for line in (net / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN:
                address, _, port = fields[1].partition(":")
                listening.append(Listener(owners.get(fields[9], "unknown"), _address(address), int(port, 16)))
    return sorted(listening)


def owner_name(command_line: list[str]) -> str:
    """A name that is the same in every run: `ray::Learner`, `raylet`, `dashboard/agent.py`."""
    first = command_line[0] if command_line else ""
    if first.startswith("ray::"):
        return re.split(r"[.\s(:]", first.removeprefix("ray::"))[0].join(("ray::", ""))
    if not Path(first).name.startswith("python"):
        return Path(first).name
    if "-m" in command_line:
        return command_line[command_line.index("-m") + 1]
    script = Path(next((word for word in command_line[1:] if not word.startswith("-")), first))
    if "-c" in command_line:
        return Path(first).name
    return "/".join(script.parts[-2:]) if "ray" in script.parts else script.name


def protection(listener: Listener) -> str:
    """`loopback`, `tls`, `curve`, `token`, or `none`. Call it on a host that reaches the socket."""
    if listener.is_loopback:
        return "loopback"
    address = (listener.address, listener.port)
    try:
        socket.create_connection(address, _ANSWER_S).close()
    except OSError as error:
        return f"none ({error})"
    # in this order each of them is known by what it says at once
    for name, is_so in (("token", _wants_token), ("curve", _speaks_curve), ("tls", _refuses_without_certificate)):
        with contextlib.suppress(OSError):
            if is_so(address):
                return name
    return "none"


def _refuses_without_certificate(address: tuple[str, int]) -> bool:
    """Whether it speaks TLS, and ends a connection that shows no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(address, _ANSWER_S) as plain:
        try:
            secured = context.wrap_socket(plain)
        except (ssl.SSLError, OSError) as error:
            return isinstance(error, ssl.SSLError) and "ALERT" in str(error).upper()
        with secured:  # in TLS 1.3 the server looks at certificates after the client believes itself connected
            try:
                return not secured.recv(1)  # ended before we said anything; a server of HTTP/2 would speak first
            except TimeoutError:
                return False  # it waits for what we want
            except (ssl.SSLError, ConnectionError):
                return True


def _speaks_curve(address: tuple[str, int]) -> bool:
    """Whether it greets with ZMTP's CURVE mechanism, the only one that it then takes."""
    with socket.create_connection(address, _ANSWER_S) as plain:
        plain.sendall(_ZMTP_GREETING)
        said = b""
        with contextlib.suppress(OSError):
            while len(said) < 64 and (more := plain.recv(64 - len(said))):
                said += more
    return said[:1] == b"\xff" and said[12:17] == b"CURVE"


def _wants_token(address: tuple[str, int]) -> bool:
    """Whether it is HTTP that answers a request without a token by 401."""
    with socket.create_connection(address, _ANSWER_S) as plain:
        plain.settimeout(_ANSWER_S)
        plain.sendall(b"POST / HTTP/1.1\r\nHost: ray\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        return plain.recv(12).endswith(b" 401")


def _address(kernel_hex: str) -> str:
    """An address as /proc writes it: words of 32 bits in the machine's order."""
    raw = b"".join(bytes.fromhex(kernel_hex[i : i + 8])[::-1] for i in range(0, len(kernel_hex), 8))
    found = ip_address(raw)
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found)

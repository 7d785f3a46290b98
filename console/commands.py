"""`longhaul console` and `longhaul report`: a run's directory as pages, and as one page to keep."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from console.report.report import write_report
from console.run_data.run import Run
from console.web.server import application, is_loopback
from protocol.errors import ConfigError


def console(arguments: Sequence[str], program: str = "longhaul console") -> int:
    """Serve a run's pages until interrupted; 0: stopped, 2: the user's mistake."""
    parser = argparse.ArgumentParser(prog=program, description="A run's pages, from its directory, over or live.")
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--port", type=int, default=0, help="0 (default): any free one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; beyond loopback a token is asked")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input ends, as its starter does")
    chosen = parser.parse_args(arguments)
    try:
        run = Run.open(chosen.run)
        listening = _listen(chosen.host, chosen.port)
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    token = None if is_loopback(chosen.host) else secrets.token_urlsafe(24)
    if chosen.until_eof:
        os.nice(10)  # the run comes first
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(run, listening, token, until_eof=chosen.until_eof))
    return 0


def report(arguments: Sequence[str], program: str = "longhaul report") -> int:
    """Write `report.html`; 0: written, 2: the user's mistake."""
    parser = argparse.ArgumentParser(prog=program, description="One self-contained page of what a run amounted to.")
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--out", type=Path, help="file to write (default: report.html in the run directory)")
    chosen = parser.parse_args(arguments)
    try:
        print(write_report(Run.open(chosen.run), chosen.out))
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """Raises `ConfigError` where nothing can listen."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--host {host} --port {port}: cannot listen there ({error})", kind="console") from error
    return listening


def _at_eof(stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        stop.set()


async def _serve(run: Run, listening: socket.socket, token: str | None, *, until_eof: bool) -> None:
    """Waits for an interrupt, SIGTERM or (`until_eof`) the end of standard input."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(application(run, token), access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{port}/{f'?token={token}' if token else ''}", flush=True)
        if until_eof:
            loop.add_reader(sys.stdin.fileno(), _at_eof, stop)
        await stop.wait()
    finally:
        await runner.cleanup()

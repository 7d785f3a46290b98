"""`longhaul console`, `longhaul report`, `longhaul compare`: a run as pages, as one page to keep, beside others."""

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
from rich.console import Console as RichConsole
from rich.markup import escape
from rich.table import Table

from console.report.report import write_report
from console.run_data.compare import compare as comparison
from console.run_data.run import Run
from console.text.inert import plain
from console.web.server import application, is_loopback
from protocol.errors import ConfigError


def console(arguments: Sequence[str], program: str = "longhaul console") -> int:
    """Serve a run's pages until interrupted; 0: stopped, 2: the user's mistake."""
    parser = argparse.ArgumentParser(prog=program, description="A run's pages, from its directory, over or live.")
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("others", type=Path, nargs="*", help="further runs, for the page Compare")
    parser.add_argument("--port", type=int, default=0, help="0 (default): any free one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; beyond loopback a token is asked")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input ends, as its starter does")
    chosen = parser.parse_args(arguments)
    try:
        run = Run.open(chosen.run)
        others = [Run.open(path) for path in chosen.others]
        listening = _listen(chosen.host, chosen.port)
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    token = None if is_loopback(chosen.host) else secrets.token_urlsafe(24)
    if chosen.until_eof:
        os.nice(10)  # the run comes first
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(run, others, listening, token, until_eof=chosen.until_eof))
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


def compare(arguments: Sequence[str], program: str = "longhaul compare") -> int:
    """Print runs beside each other; 0: done, 2: the user's mistake."""
    parser = argparse.ArgumentParser(prog=program, description="Two or more runs: settings that differ, and figures.")
    parser.add_argument("runs", type=Path, nargs="+", help="run directories")
    chosen = parser.parse_args(arguments)
    try:
        if len(chosen.runs) < 2:
            raise ConfigError("expected two run directories or more, got one", kind="compare")
        found = comparison([Run.open(path) for path in chosen.runs])
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    screen = RichConsole()
    for title, rows in (("Settings that differ", found.settings), ("Figures", found.figures)):
        table = Table(title=title, title_justify="left")
        for column in ("", *map(plain, found.names)):
            table.add_column(escape(column), overflow="fold")
        for name, values in rows.items():
            shown = [f"{v:.4g}" if isinstance(v, float) else "" if v is None else plain(str(v)) for v in values]
            table.add_row(escape(plain(name)), *map(escape, shown))
        screen.print(table if rows else f"{title}: none")
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


async def _serve(run: Run, others: list[Run], listening: socket.socket, token: str | None, *, until_eof: bool) -> None:
    """Waits for an interrupt, SIGTERM or (`until_eof`) the end of standard input."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(application(run, token, others), access_log=None)
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

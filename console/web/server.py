"""The application: who may ask, what every answer carries, and a task that keeps up with the run.

Nothing of it writes to the run but the index of episodes. It asks nobody outside, and its pages can't either.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from console.plots.cached import Plots
from console.run_data.run import Run
from console.web import pages
from console.web.templates import COMPARED, PLOTS, RUN, page_of_error

log = logging.getLogger(__name__)

COOKIE = "longhaul_console"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_EVERY_S = 2.0


def application(run: Run, token: str | None, others: Sequence[Run] = ()) -> web.Application:
    """The console of a run.

    Args:
        token: asked of everybody; None asks nobody, which is for loopback only.
        others: further runs, with which the page Compare compares it.
    """
    app = web.Application(middlewares=[_headers, _errors, _admit(token)])
    app[RUN] = run
    app[COMPARED] = [run, *others]
    app[PLOTS] = Plots()
    app.add_routes(pages.routes())
    app.router.add_static("/static", Path(__file__).parent / "static")
    app.cleanup_ctx.append(_keep_up)
    return app


def is_loopback(host: str) -> bool:
    """Whether nobody but this host reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _keep_up(app: web.Application) -> AsyncIterator[None]:
    """Reads metrics and episodes as they come. Ends with the application."""
    run = app[RUN]
    await asyncio.to_thread(run.metrics.update)

    async def forever() -> None:
        while True:
            try:
                await asyncio.to_thread(run.metrics.update)
                while await asyncio.to_thread(run.index.read_on):  # pages are answered in between
                    pass
            except Exception:  # a full disk, a directory that is being removed: the pages say what they know
                log.exception("the run's files could not be read")
            await asyncio.sleep(_EVERY_S)

    task = asyncio.create_task(forever(), name="keep up with the run")
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    for each in app[COMPARED]:
        each.index.close()


@web.middleware
async def _headers(request: web.Request, handler: Handler) -> web.StreamResponse:
    response = await handler(request)
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What is wrong with a URL is said on a page."""
    try:
        return await handler(request)
    except web.HTTPRedirection:
        raise
    except web.HTTPException as error:
        return page_of_error(request, error.status, error.text or error.reason)
    except ValueError as error:
        return page_of_error(request, 400, str(error))
    except (OSError, sqlite3.Error, LookupError, TypeError) as error:  # the run's files are gone, or are no such files
        if not request.app[RUN].directory.is_dir():
            return page_of_error(request, 410, f"{request.app[RUN].directory} is gone.")
        log.exception("%s", request.path)
        said = f"this page could not be made from the run's files ({type(error).__name__}): the console's log says more"
        return page_of_error(request, 500, said)


def _admit(token: str | None) -> Middleware:
    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        if token is None:
            if not is_loopback(_host_of(request)):  # a page elsewhere whose name was made to lead here
                raise web.HTTPForbidden(text=f"{_host_of(request)} is no name of this host's loopback")
            return await handler(request)
        if _equal(request.cookies.get(COOKIE, ""), token):
            return await handler(request)
        if _equal(request.query.get("token", ""), token):
            address = request.rel_url.with_query({k: v for k, v in request.query.items() if k != "token"})
            answer = web.HTTPSeeOther(address)
            answer.set_cookie(COOKIE, token, httponly=True, samesite="Strict")
            raise answer
        raise web.HTTPUnauthorized(text="This console asks for its token: open the address that was printed with it.")

    return admit


def _host_of(request: web.Request) -> str:
    host = request.host
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _equal(given: str, token: str) -> bool:
    """In a time that tells nothing."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())

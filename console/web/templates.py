"""Templates and what they may call. Everything is escaped unless `console.text` made it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from console.plots import svg
from console.plots.cached import Plots
from console.run_data.run import Run
from console.text.diffs import side_by_side
from console.text.inert import cut, plain, terminal, visible

RUN = web.AppKey("run", Run)
COMPARED = web.AppKey("compared", list[Run])
PLOTS = web.AppKey("plots", Plots)


@cache
def environment() -> Environment:
    """Jinja with its filters; used by the pages and by the report."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "terminal": terminal,
        "visible": visible,
        "plain": plain,
        "cut": cut,
        "short": lambda value: "–" if value is None else svg.short(value),  # NaN is NULL in the index
        "clock": clock,
        "seconds": seconds,
        "side_by_side": side_by_side,
        "pretty": lambda value: json.dumps(value, ensure_ascii=False, indent=2, default=str),
        "bytes": in_bytes,
        "ratio": ratio,
    }
    found.globals |= {"url": url}
    return found


def render(request: web.Request, template: str, status: int = 200, **values: Any) -> web.Response:
    """A page."""
    run = request.app[RUN]
    state = run.state()
    text = (
        environment()
        .get_template(template)
        .render(
            run=run,
            state=state,
            path=request.path,
            query=dict(request.query),
            num_compared=len(request.app[COMPARED]),
            **values,
        )
    )
    return web.Response(body=text.encode("utf-8", "replace"), content_type="text/html", charset="utf-8", status=status)


def page_of_error(request: web.Request, status: int, text: str) -> web.Response:
    """A page that says what is wrong."""
    if status == 401:  # nothing of the run is shown
        return web.Response(text=text, status=status)
    return render(request, "error.html", status, text=text, code=status)


def url(path: str, query: Mapping[str, Any] | None = None, **changes: Any) -> str:
    """A view's address; what is empty is left out."""
    values = {**(query or {}), **changes}
    given = {name: value for name, value in values.items() if value not in (None, "")}
    return f"{path}?{urlencode(given, errors='replace')}" if given else path


def clock(at: float) -> str:
    """Date and time of seconds since the epoch, in UTC."""
    try:
        return time.strftime("%m-%d %H:%M:%S", time.gmtime(at))
    except (OverflowError, ValueError, OSError, TypeError):
        return "?"


def seconds(value: float | None) -> str:
    """A duration in a few characters."""
    if value is None:
        return ""
    if value < 1:
        return f"{1000 * value:.0f} ms"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def ratio(token: Mapping[str, float]) -> str:
    """Learner's probability of a token over the sampler's."""
    return svg.short(math.exp(min(max(token["learner"] - token["sampler"], -50.0), 50.0)))


def in_bytes(size: float) -> str:
    """A size in a few characters."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("the last unit fits")

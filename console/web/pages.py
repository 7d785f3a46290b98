"""What answers each address. Questions to the disk run in threads."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import TypeVar

from aiohttp import web

from console.episodes.story import Story, first_difference, tell
from console.episodes.tokens import SHOWN, read_tokens
from console.plots import figures, svg
from console.plots.compared import curves
from console.run_data import fleet, queries, trained
from console.run_data.audit import read_audit
from console.run_data.compare import compare
from console.run_data.evaluations import own_evaluation, read_evaluations
from console.run_data.rates import rates
from console.run_data.records import Record
from console.run_data.run import Run, bottleneck
from console.run_data.settings import flat, versions_of
from console.run_data.task_states import read_tasks
from console.watchers.watch import watch
from console.web.templates import COMPARED, PLOTS, RUN, render

Result = TypeVar("Result")
_LOG_LINES = 2000


def routes() -> list[web.RouteDef]:
    """Every view."""
    return [
        web.get("/", overview),
        web.get("/episodes", episodes),
        web.get("/episode", episode),
        web.get("/tokens", tokens),
        web.get("/raw", raw),
        web.get("/group", group),
        web.get("/tasks", tasks),
        web.get("/task", task),
        web.get("/steps", steps),
        web.get("/step", step),
        web.get("/fleet", processes),
        web.get("/log", process_log),
        web.get("/evaluations", evaluations),
        web.get("/settings", settings),
        web.get("/compare", compared),
    ]


async def overview(request: web.Request) -> web.Response:
    """What the run does, and how it went."""
    run = request.app[RUN]
    axis: figures.Axis = "time" if request.query.get("x") == "time" or not run.metrics.steps else "step"
    state = run.state()
    part = bottleneck(run.metrics.newest, run.metrics.records)[0] if state == "live" else ""
    return render(
        request,
        "overview.html",
        sentence=run.sentence(),
        findings=watch(run.metrics.records, run.metrics.samples, run.held_out),
        plots=request.app[PLOTS].of(run.metrics, axis, run.held_out),
        axis=axis,
        system=run.metrics.newest,
        last=run.metrics.records[-1] if run.metrics.steps else {},
        part=part,
        rates=rates(run.metrics.samples, run.metrics.newest, is_live=state == "live"),
        audit=await asyncio.to_thread(read_audit, run.directory),
        own=await asyncio.to_thread(own_evaluation, run.directory),
        progress=await asyncio.to_thread(run.index.progress),
    )


async def episodes(request: web.Request) -> web.Response:
    """The episodes that fit the query."""
    chosen = queries.Filter.of(request.query)

    def ask(db: sqlite3.Connection) -> tuple[queries.Page, dict[str, list[str]]]:
        lists = {name: queries.choices(db, name) for name in ("end_reason", "repository", "source", "evaluation")}
        return queries.episodes(db, chosen), lists

    page, lists = await _ask(request, ask)
    progress = await asyncio.to_thread(request.app[RUN].index.progress)
    return render(
        request,
        "episodes.html",
        page=page,
        chosen=chosen,
        ends=lists["end_reason"],
        repositories=lists["repository"],
        sources=lists["source"],
        evaluations=lists["evaluation"],
        sorts=queries.SORTS,
        progress=progress,
    )


async def episode(request: web.Request) -> web.Response:
    """One episode as a story."""
    run = request.app[RUN]
    row = await _row(request)
    record = await _record(run, row)
    later, earlier = await _ask(request, lambda db: queries.neighbours(db, row))
    trained_at = await _trained_at(request, row)
    return render(
        request,
        "episode.html",
        row=row,
        record=record,
        story=tell(record),
        later=later,
        earlier=earlier,
        trained_at=trained_at,
    )


async def tokens(request: web.Request) -> web.Response:
    """An episode token by token."""
    run = request.app[RUN]
    row = await _row(request)
    record = await _record(run, row)
    at = _whole(request, "at", -1)
    steps = await _trained_at(request, row)
    model = run.model_path
    start = at if at >= 0 else _whole(request, "from", 0)
    found = await asyncio.to_thread(read_tokens, run.directory, row, record, steps, start, model)
    if found is None:
        raise web.HTTPNotFound(text=f"of episode {row['episode'][:80]!r} no tokens are recorded, or they are damaged")
    chosen = next((token for token in found.shown if token.place == at), None)
    return render(request, "tokens.html", row=row, tokens=found, chosen=chosen, page_size=SHOWN)


async def raw(request: web.Request) -> web.Response:
    """One text of an episode whole, as plain text: a message by its place, the patch, the judge's log, the record."""
    run = request.app[RUN]
    row = await _row(request)
    part = request.query.get("part", "record")
    if part == "record":
        text = ((await asyncio.to_thread(run.index.line, row)) or b"").decode("utf-8", "replace")
    else:
        record = await _record(run, row)
        named = {"patch": record.patch, "log": record.verdict.log}
        if part not in named and not (part.isdecimal() and int(part) < len(record.messages)):
            raise web.HTTPNotFound(text=f"this episode has no part {part[:80]!r}")
        text = named[part] if part in named else record.messages[int(part)].text
    return web.Response(body=text.encode("utf-8", "replace"), content_type="text/plain", charset="utf-8")


async def group(request: web.Request) -> web.Response:
    """The members of a group side by side."""
    run = request.app[RUN]
    name, evaluation = request.query.get("id", ""), request.query.get("evaluation", "")
    rows = await _ask(request, lambda db: queries.members(db, name, evaluation))
    if not rows:
        raise web.HTTPNotFound(text=f"no episode of group {name[:80]!r} is recorded")

    def read() -> list[tuple[sqlite3.Row, Story]]:
        found = [(row, run.index.record(row)) for row in rows]
        return [(row, tell(record)) for row, record in found if record is not None]

    told = await asyncio.to_thread(read)
    learned = {} if evaluation else await _ask(request, lambda db: trained.advantages_of(db, name))
    trained_in = [] if evaluation else await _ask(request, lambda db: trained.steps_with(db, name))
    is_scored_only = bool(evaluation) or run.is_evaluation
    return render(
        request,
        "group.html",
        group=name,
        evaluation=evaluation,
        is_scored_only=is_scored_only,
        members=told,
        size=0 if is_scored_only else run.group_size,
        differs=first_difference([story for _, story in told]),
        advantages=_advantages([row["reward"] or 0.0 for row, _ in told]),
        learned=learned,
        trained_in=trained_in,
        knows_steps=await _ask(request, trained.has_steps),
    )


async def tasks(request: web.Request) -> web.Response:
    """Every task with its pass rate."""
    sort = request.query.get("sort", "") or "episodes"
    if sort not in queries.TASK_SORTS:
        raise ValueError(f"sort: expected one of {', '.join(queries.TASK_SORTS)}, got {sort[:80]!r}")
    chosen = queries.Filter.of({k: v for k, v in request.query.items() if k in ("task", "page", "dir", "evaluation")})

    def ask(db: sqlite3.Connection) -> tuple[queries.Page, list[str]]:
        return queries.tasks(db, sort, chosen), queries.choices(db, "evaluation")

    page, names = await _ask(request, ask)
    states = await asyncio.to_thread(read_tasks, request.app[RUN].directory)
    return render(
        request,
        "tasks.html",
        page=page,
        sort=sort,
        chosen=chosen,
        evaluations=names,
        states=states,
        shows_states=bool(states) and not request.app[RUN].is_evaluation,
        troubled={name: state.trouble for name, state in states.items() if state.trouble},
    )


async def task(request: web.Request) -> web.Response:
    """A task's episodes in the order of versions."""
    name = request.query.get("id", "")
    rows = await _ask(request, lambda db: queries.of_task(db, name))
    if not rows:
        raise web.HTTPNotFound(text=f"no episode of task {name[:80]!r} is recorded")
    by_version = await _ask(request, lambda db: queries.task_by_version(db, name))
    figure = figures.Figure("Solved by version", "share", (), share=True)
    points = [(float(row["version"]), float(row["solved"])) for row in by_version]
    drawn = figures.Drawn(figure, [("solved", "solved", points)])
    plot = svg.plot(drawn, "step", svg.span_of([drawn]))
    state = (await asyncio.to_thread(read_tasks, request.app[RUN].directory)).get(name)
    return render(request, "task.html", task=name, rows=rows, plot=plot, by_version=by_version, known=state)


async def steps(request: web.Request) -> web.Response:
    """Every optimizer step."""
    return render(request, "steps.html", records=request.app[RUN].metrics.records[::-1][:1000])


async def step(request: web.Request) -> web.Response:
    """All figures of one step beside those of the step before."""
    metrics = request.app[RUN].metrics
    number = _whole(request, "n", -1)
    if number not in metrics.steps:
        raise web.HTTPNotFound(text=f"no step {request.query.get('n', '')[:80]!r} is recorded")
    return render(
        request,
        "step.html",
        number=number,
        record=metrics.steps[number],
        before=metrics.steps.get(number - 1, {}),
        earlier=max((n for n in metrics.steps if n < number), default=None),
        later=min((n for n in metrics.steps if n > number), default=None),
        trained=await _ask(request, lambda db: trained.trained_in(db, number)),
    )


async def processes(request: web.Request) -> web.Response:
    """Every process by its log."""
    run = request.app[RUN]
    found = await asyncio.to_thread(fleet.processes, run.directory, run.metrics.newest)
    placed = await asyncio.to_thread(fleet.placement, run.directory)
    return render(request, "fleet.html", processes=found, placement=placed, system=run.metrics.newest)


async def process_log(request: web.Request) -> web.Response:
    """The end of one process's log."""
    run = request.app[RUN]
    name = request.query.get("name", "")
    path = await asyncio.to_thread(fleet.log_path, run.directory, name)
    if path is None:
        raise web.HTTPNotFound(text=f"no process {name[:80]!r} has a log")
    tail = await asyncio.to_thread(fleet.tail_of, path, _LOG_LINES, 512 << 10)
    return render(request, "log.html", name=name, tail=tail, num_lines=_LOG_LINES)


async def evaluations(request: web.Request) -> web.Response:
    """Every evaluation: that which the run is, or those of its policy."""
    found = await asyncio.to_thread(read_evaluations, request.app[RUN].directory)
    return render(request, "evaluations.html", found=found)


async def settings(request: web.Request) -> web.Response:
    """The resolved settings, those that differ from the defaults first."""
    changed, others = flat(request.app[RUN].settings)
    found, is_recorded = await asyncio.to_thread(versions_of, request.app[RUN].directory)
    return render(request, "settings.html", changed=changed, others=others, versions=found, is_recorded=is_recorded)


async def compared(request: web.Request) -> web.Response:
    """This run beside the others that the console was opened with."""
    runs = request.app[COMPARED]
    found = await asyncio.to_thread(compare, runs)
    axis: figures.Axis = "time" if request.query.get("x") == "time" else "step"
    drawn = curves(runs, axis)
    span = svg.span_of(drawn)
    plots = [(figure, svg.plot(figure, axis, span)) for figure in drawn]
    return render(request, "compare.html", found=found, plots=plots, axis=axis)


async def _ask(request: web.Request, question: Callable[[sqlite3.Connection], Result]) -> Result:
    def answer() -> Result:
        with request.app[RUN].index.connect() as db:
            return question(db)

    return await asyncio.to_thread(answer)


async def _row(request: web.Request) -> sqlite3.Row:
    name, number = request.query.get("id", ""), request.query.get("row", "")
    chosen = int(number) if number.isdecimal() and len(number) < 18 else None
    row = await _ask(request, lambda db: queries.episode_row(db, name, chosen))
    if row is None:
        raise web.HTTPNotFound(text=f"no episode {name[:80]!r} is recorded")
    return row


def _whole(request: web.Request, name: str, otherwise: int) -> int:
    text = request.query.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 10 else otherwise


async def _trained_at(request: web.Request, row: sqlite3.Row) -> list[sqlite3.Row]:
    if row["evaluation"]:
        return []
    return await _ask(request, lambda db: trained.steps_of(db, row["episode"], row["attempt"]))


async def _record(run: Run, row: sqlite3.Row) -> Record:
    record = await asyncio.to_thread(run.index.record, row)
    if record is None:
        raise web.HTTPNotFound(text=f"{row['file']} has changed since it was read: the episode is not where it was")
    return record


def _advantages(rewards: list[float]) -> list[float]:
    """(r - mean) / std over what is recorded, 0 where all are equal."""
    mean = sum(rewards) / max(len(rewards), 1)
    std = (sum((r - mean) ** 2 for r in rewards) / max(len(rewards), 1)) ** 0.5
    return [(r - mean) / std if std > 1e-9 else 0.0 for r in rewards]

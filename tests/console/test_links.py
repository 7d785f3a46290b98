"""No page leads to one that is not there: every link of the made run is followed, as far as new kinds of pages come."""

from __future__ import annotations

import html
import re
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from aiohttp.test_utils import TestClient, TestServer

from console.run_data.run import Run
from console.web.server import application

MOST = 25
"""Links that are followed of one kind: one path with the same names in its query."""


async def test_every_link_leads_somewhere(made_run: Path) -> None:
    run = Run.open(made_run)
    run.index.update()
    seen: Counter[tuple[str, ...]] = Counter()
    known, waiting = {"/"}, ["/", "/step?n=1", "/step?n=20"]
    async with TestClient(TestServer(application(run, None))) as client:
        while waiting:
            page = waiting.pop()
            answer = await client.get(page)
            assert answer.status == 200, page
            if answer.content_type != "text/html":
                continue
            for found in re.findall(r'href="([^"#]+)', await answer.text()):
                link = html.unescape(found)
                parts = urlsplit(link)
                kind = (parts.path, *sorted({name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}))
                if link in known or parts.netloc or seen[kind] >= MOST:
                    continue
                seen[kind] += 1
                known.add(link)
                waiting.append(link)
    paths = {kind[0] for kind in seen}
    assert {"/episodes", "/episode", "/tokens", "/group", "/tasks", "/task", "/steps", "/step", "/fleet"} <= paths

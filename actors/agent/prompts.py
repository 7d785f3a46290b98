"""What the model is told at the start of an episode."""

from __future__ import annotations

from typing import Literal

from actors.agent.chat import Chat
from actors.agent.tools import TOOLS

PromptStyle = Literal["brief", "full"]

_FULL = """\
You are a software engineer. A repository is checked out in the current directory, and an issue about it follows. \
Find the cause, change the code so that the issue is solved, check your change, then submit. Hidden tests judge the \
repository as you leave it; do not change its tests.

In every turn think briefly, then write exactly one command in a block like this:

```command
search_dir "def parse_date"
```

You will be shown its output, then it is your turn again. Write nothing after the block. If the text of a command \
holds ``` lines itself, fence the block with four backticks.

Commands:
{tools}"""

_SHELL_ONLY = """\
You are a software engineer. A repository is checked out in the current directory, and an issue about it follows. \
Find the cause with shell commands, change the code so that the issue is solved, check your change, then submit. \
Hidden tests judge the repository as you leave it; do not change its tests. Call exactly one tool a turn."""


def react_chat(issue: str, style: PromptStyle) -> Chat:
    """Opening of a ReAct episode. `brief` is the issue alone, for models that learned the tools by training."""
    if style == "brief":
        return [{"role": "user", "content": issue}]
    return [{"role": "system", "content": _FULL.format(tools=tool_list())}, {"role": "user", "content": issue}]


def shell_chat(issue: str, style: PromptStyle, extra: str = "") -> Chat:
    """Opening of an episode with the shell alone; `extra` follows the system text."""
    system = extra.strip() if style == "brief" else f"{_SHELL_ONLY}{extra}"
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": issue}]


def tool_list() -> str:
    """Every tool with its usage and purpose, for a prompt."""
    return "\n".join(f"{tool.usage}\n    {tool.purpose}" for tool in TOOLS.values())

"""An agent of thirty lines around the `openai` package: it runs inside the sandbox and knows nothing of training."""

import os
import re
import subprocess
from pathlib import Path

import openai


def answer(text: str) -> str | None:
    """What a turn's one command says; None: the work is done."""
    found = re.findall(r"^```command\n(.*?)\n```$", text, re.DOTALL | re.MULTILINE)
    if len(found) != 1:
        return "[format error: write exactly one ```command block]"
    first, _, body = found[0].partition("\n")
    tool, *words = first.split() or [""]
    if tool == "submit":
        return None
    if tool == "search_dir":
        return run(f"grep -rnF --exclude-dir=.git -e {words[0]} | sort -t: -k1,1 -k2,2n")
    if tool not in ("open", "edit"):
        return run(found[0])
    path = Path(words[0])
    lines = path.read_text().splitlines()
    if tool == "open":
        return show(words[0], "", lines, 1, len(lines))
    start, end = map(int, words[1].split(":"))
    lines[start - 1 : end] = new = body.splitlines()
    path.write_text("\n".join(lines) + "\n")
    return show(words[0], "changed, ", lines, start, start + len(new) - 1)


def show(path: str, verb: str, lines: list[str], start: int, end: int) -> str:
    head = f"[{path}: {verb}lines {start}-{end} of {len(lines)}]"
    return "\n".join([head, *(f"{number}:{lines[number - 1]}" for number in range(start, end + 1))])


def run(command: str) -> str:
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30)
    return done.stdout.rstrip("\n") or "[no output]"


client = openai.OpenAI()  # OPENAI_BASE_URL and OPENAI_API_KEY are set
messages = [{"role": "user", "content": Path(os.environ["LONGHAUL_ISSUE"]).read_text()}]
while True:
    text = client.chat.completions.create(model="longhaul", messages=messages).choices[0].message.content
    try:
        said = answer(text)
    except (OSError, ValueError, IndexError) as error:
        said = f"[{type(error).__name__}: {error}]"
    if said is None:
        break
    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": said}]

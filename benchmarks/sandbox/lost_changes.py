"""Does anything of an agent's change get lost? Random behaviours in git trees, careful, careless and hostile.

An oracle that shares no code with the taking looks at the tree as the agent left it: whatever differs from the tree
that was given must be in the patch, and `git apply` of the patch's text on the given tree must give that tree.
"""

from __future__ import annotations

import asyncio
import io
import os
import random
import secrets
import subprocess
import tarfile
import tempfile
from pathlib import Path

from sandbox.base import Backend, Limits, Sandbox, SandboxSpec
from sandbox.judgement.checkout import prepare, take_patch
from sandbox.namespace.backend import NamespaceBackend
from sandbox.patches import Change, Patch
from sandbox.tasks.task import Task

DEADLINE_S = 120.0
ACTIONS_EACH = 6
MAKE_TREE = r"""
git init -q . && git config user.name a && git config user.email a@b
mkdir -p pkg/sub docs tests 'odd names'
for i in $(seq 60); do echo "line $i"; done > pkg/m.py
printf 'a = 1\r\nb = 2\r\n' > pkg/crlf.py
printf 'no newline at the end' > pkg/tail.py
printf 'caf\351 = 1\n' > pkg/latin.py
printf '\377\376a\000b\000\n\000' > pkg/wide.txt
printf '\000\001\002\003' > docs/logo.bin
printf 'x\ny\n' > 'odd names/a "b" c.txt'
printf 'x\n' > $'odd names/tab\there'
printf 'x\n' > 'odd names/größe.txt'
printf '#!/bin/sh\necho hi\n' > run.sh; chmod +x run.sh
echo 'v = 1' > pkg/version.py; echo version.py > .gitignore; echo 'secret/' >> .gitignore
mkdir pkg/secret; echo 's = 1' > pkg/secret/s.py
printf '* text=auto\n*.dat -diff\n' > .gitattributes
echo d > pkg/x.dat; ln -s m.py pkg/link.py; ln -s pkg packages; mkdir -p build; echo kept > build/kept.txt
git add -A; git add -f pkg/version.py pkg/secret/s.py; git commit -qm base; git branch other; git tag v1
"""
EDITS = [
    "sed -i 's/line 3$/line three/' pkg/m.py",
    "sed -i '10,20d' pkg/m.py",
    "sed -i 's/a = 1/a = 2/' pkg/crlf.py",
    "printf ' any more' >> pkg/tail.py",
    "printf 'na\\357ve = 2\\n' >> pkg/latin.py",
    "printf 'c\\000\\n\\000' >> pkg/wide.txt",
    "printf '\\004' >> docs/logo.bin",
    "echo z >> 'odd names/a \"b\" c.txt'",
    "echo z >> $'odd names/tab\\there'",
    "echo ü >> 'odd names/größe.txt'",
    "echo 'v = 2' > pkg/version.py",
    "echo 's = 2' > pkg/secret/s.py",
    "echo e >> pkg/x.dat",
    "chmod -x run.sh",
    "chmod +x pkg/m.py",
    "rm -f docs/logo.bin",
    "mv pkg/tail.py pkg/sub/moved.py",
    "git mv pkg/crlf.py pkg/renamed.py",
    "rm -rf docs; echo 'a file now' > docs",
    "rm -rf run.sh; mkdir run.sh; echo in > run.sh/inner.txt",
    "rm -f pkg/link.py; ln -s ../build/kept.txt pkg/link.py",
    "rm -f pkg/link.py; echo 'no link any more' > pkg/link.py",
    "rm -f pkg/tail.py; ln -s m.py pkg/tail.py",
    "rm packages; mkdir packages; echo real > packages/m.py",
    "echo new > pkg/new.py",
    "printf 'form\\014feed\\rcarriage\\n' > pkg/feed.py",
    "printf 'x\\342\\200\\250y\\n' > pkg/separators.py",
    "printf '\\357\\273\\277bom\\n' > pkg/bom.py",
    "mkdir -p a/b/c/d; echo deep > a/b/c/d/e.py",
    "echo x > $'pkg/new\\nline.py'; echo y > 'pkg/ lead.py'; echo z > 'pkg/trail '; echo w > 'pkg/back\\slash'",
    "echo x > -- '-rf'; echo y > ./-n; : > pkg/empty.py",
    "echo s > pkg/secret/more.py; echo b > build/new.txt",
    "printf -- '--- a/x\\n+++ b/x\\n@@ -1 +1 @@\\n-a\\n+b\\n' > notes.diff",
    "printf 'tail \\t \\n\\n\\n' > pkg/blank.py",
    "yes 'same line' | head -20000 > pkg/same.txt",
    "ln pkg/m.py pkg/hard.py",
    "touch -d '2001-01-01' pkg/m.py; printf 'line X\\n' | dd of=pkg/m.py bs=1 conv=notrunc 2>/dev/null;"
    " touch -d '2001-01-01' pkg/m.py",
    "rm -rf 'odd names'",
    "rm -f .gitattributes",
    "echo '!*' > .gitignore",
    "mv pkg/m.py t; mv pkg/crlf.py pkg/m.py; mv t pkg/crlf.py",
    "printf 'a\\rb\\rc' > pkg/mac.py; printf 'a\\r\\nb\\nc\\r\\n' > pkg/mixed.py;"
    " printf 'a = 1\\nb = 2\\n' > pkg/crlf.py",
    "chmod 4755 run.sh; chmod 0600 pkg/m.py; chmod 1777 pkg; chmod 0111 pkg/latin.py",
    "truncate -s 3M pkg/sparse.bin; truncate -s 0 pkg/m.py",
    "ln -s loop pkg/loop; ln -s '' pkg/none 2>/dev/null; ln -s $'a\\nb' pkg/nl; ln -s . pkg/dot",
    "mv pkg/m.py pkg/M.py; echo x > pkg/Crlf.py",
    "n=$(printf 'n%.0s' $(seq 250)); echo x > pkg/$n.py; echo y > $'pkg/e\\xcc\\x81.py'; echo z > $'pkg/\\xc3\\xa9.py'",
    "printf '[submodule \"x\"]\\n\\tpath = pkg\\n\\turl = ../x\\n' > .gitmodules; echo a >> .gitattributes",
    "rm -rf docs; ln -s pkg docs; rm -rf build; ln -s nowhere build",
    "printf 'a\\0b' > pkg/m.py; printf 'text\\n' > docs/logo.bin",
    "printf '\\xef\\xbb\\xbf' > pkg/bom_only.py; printf '\\n' > pkg/nl.py; "
    " printf '\\r\\n' > pkg/crlf_only.py; printf ' ' > pkg/sp.py",
    "sed -i '1!G;h;$!d' pkg/m.py; printf '\\\\ No newline at end of file\\n' >> pkg/m.py",
    "cp -p pkg/m.py pkg/copy.py; ln -f pkg/copy.py pkg/m.py; echo t >> pkg/copy.py",
    "mkdir -p .github/workflows; echo a > .github/workflows/ci.yml; echo b > .git-blame-ignore-revs;"
    " mkdir .gitlab; echo c > .gitlab/x",
    "echo x > $'pkg/\\x01ctl.py'; echo x > $'pkg/\\x7fdel.py'; echo x > $'pkg/\\u202e.py'",
]
CARELESS = [
    "git add -A; git commit -qm mine",
    "git checkout -q -b mine; git add -A; git commit -qm mine; git checkout -q -",
    "git add -A; git stash -q; git stash pop -q",
    "git add -A; git reset -q",
    "git rm -rq --cached .",
    "rm -rf .git",
    "echo garbage > .git/index",
    "touch .git/index.lock .git/HEAD.lock",
    "echo ref: refs/heads/none > .git/HEAD",
    "git config core.autocrlf true",
    "git config core.fileMode false; git config core.symlinks false; git config core.ignoreCase true",
    "git config diff.noprefix true; git config diff.mnemonicPrefix true; git config color.ui always",
    "git config diff.renames copies; git config diff.external /bin/false; git config core.quotePath false",
    "git config core.worktree /tmp; git config core.bare true",
    "echo '*' > .git/info/exclude; echo '*' >> .gitignore",
    "printf '* binary\\n*.py filter=evil\\n' >> .gitattributes; git config filter.evil.clean 'echo x'",
    "echo '* ident export-subst working-tree-encoding=UTF-16' > .git/info/attributes",
    "printf '#!/bin/sh\\nexit 1\\n' > .git/hooks/pre-commit; chmod +x .git/hooks/pre-commit",
    "git update-index --assume-unchanged pkg/m.py pkg/version.py; git update-index --skip-worktree pkg/latin.py",
    "git sparse-checkout set docs 2>/dev/null; git sparse-checkout disable 2>/dev/null",
    "mkdir -p scratch && cd scratch && git init -q && echo a > a && git add a"
    " && git -c user.name=a -c user.email=a@b commit -qm a; cd ..; git add -A",
    "cd pkg && git init -q && git add -A && git -c user.name=a -c user.email=a@b commit -qm a; cd ..",
    "git worktree add -q ../elsewhere other 2>/dev/null",
    "echo 'gitdir: /nowhere' > pkg/sub/.git",
    "git config --global core.excludesFile /testbed/pkg/m.py; git config --global diff.suppressBlankEmpty true",
    "mkdir -p ~/bin; printf '#!/bin/sh\\nexit 0\\n' > ~/bin/git; chmod +x ~/bin/git; export PATH=~/bin:$PATH",
    "git gc -q; git reflog expire --all --expire=now; git prune",
    "chmod -R a-w .git",
    "chmod 644 pkg/secret odd*",
    "chmod a-x .",
    "chmod 000 pkg/secret; chmod 000 pkg/new.py 2>/dev/null",
    "(sleep 1000; rm -rf pkg) & disown",
]
LEFTOVERS = [
    "mkdir -p pkg/__pycache__; echo x > pkg/__pycache__/m.cpython-311.pyc",
    "mkdir -p node_modules/left-pad; echo x > node_modules/left-pad/index.js",
    "mkdir -p .venv/lib; echo x > .venv/pyvenv.cfg; for i in $(seq 3000); do echo $i > .venv/lib/$i.py; done",
    "head -c 6000000 /dev/urandom > big.bin",
    "mkdir -p pkg.egg-info; echo x > pkg.egg-info/PKG-INFO",
    "mkfifo pkg/pipe; mkdir -p pkg/nothing/inside",
    "d=.; for i in $(seq 300); do d=$d/n; done; mkdir -p $d 2>/dev/null",
    "ln -s /etc/passwd outside; ln -s ../.. pkg/up",
    "echo x > $'pkg/\\377.py'",
    "echo x > 'pkg/git~1'; mkdir pkg/.GIT; echo y > pkg/.GIT/config; echo w > '.git '",
    "mkdir -p pkg/.git.; echo x > pkg/.git./x; echo y > 'pkg/.git::$INDEX_ALLOCATION'",
    "ln -s m.py pkg/.GitModules; echo x > 'pkg/a\\.git'",
]


def is_leftover(path: bytes, size: int) -> bool:
    """Whether one of `LEFTOVERS` made it."""
    parts = set(path.split(b"/"))
    made = {b"__pycache__", b"node_modules", b".venv", b"pkg.egg-info", b".git", b"outside", b"up", b"n"}
    refused = {b"git~1", b".GIT", b".git ", b".git.", b".git::$INDEX_ALLOCATION", b".GitModules", b"a\\.git"}
    return bool(parts & (made | refused)) or size > 4 << 20 or b"\xff" in path


async def lost_changes(num: int = 300, seed: int = 0, backend: Backend | None = None) -> int:
    """How many of `num` behaviours end in a patch that lacks something, has too much, or does not apply."""
    return len(await losses(num, seed, backend))


async def losses(num: int, seed: int = 0, backend: Backend | None = None) -> list[str]:
    """What was lost, a line for each behaviour that lost something."""
    own = None if backend else NamespaceBackend(f"lost-{secrets.token_hex(4)}")
    using = backend or own
    assert using is not None
    found: list[str] = []
    try:
        with tempfile.TemporaryDirectory(prefix="longhaul-lost-") as scratch:
            tree = Path(scratch) / "given"
            tree.mkdir()
            tree.parent.chmod(0o755)
            _run(["bash", "-c", MAKE_TREE], tree)
            for number in range(num):
                script = _behaviour(random.Random(f"{seed}.{number}"))
                if lost := await _try(using, tree, script):
                    found.append(f"behaviour {number}: {lost}\n{script}")
    finally:
        if own is not None:
            await own.close()
    return found


def _behaviour(draw: random.Random) -> str:
    actions = draw.sample(EDITS, draw.randint(1, ACTIONS_EACH))
    actions += draw.sample(CARELESS, draw.randint(0, 3)) + draw.sample(LEFTOVERS, draw.randint(0, 2))
    draw.shuffle(actions)
    return "\n".join(f"( cd /testbed; {action} ) >/dev/null 2>&1" for action in actions)


async def _try(backend: Backend, tree: Path, script: str) -> str:
    spec = SandboxSpec(run="lost", lease="lost", source=tree, limits=Limits(disk_mib=128))
    task = Task(
        task_id="lost/1",
        source="micro",
        repository="r",
        issue="i",
        fail_to_pass=("t",),
        image=f"tree-{tree.parent.name}",
    )
    async with await backend.create(spec) as sandbox:
        await prepare(sandbox, task)
        given = await _look(sandbox)
        await sandbox.exec(script, timeout=DEADLINE_S)
        await sandbox.kill_all()
        await sandbox.exec("chmod -R u+rwX /testbed", timeout=DEADLINE_S, cwd="/")
        now = await _look(sandbox)
        patch = await take_patch(sandbox, task)
    return await asyncio.to_thread(_lost, given, now, patch)


State = dict[bytes, tuple[str, bytes, bool]]


async def _look(sandbox: Sandbox) -> State:
    """Every file and link, by the sandbox's own tar: independent of what is looked at here."""
    done = await sandbox.exec("tar -cf /tmp/look.tar -C /testbed . 2>/dev/null; true", timeout=DEADLINE_S, cwd="/")
    assert done.exit_code == 0
    data = await sandbox.read("/tmp/look.tar", 1 << 26)
    await sandbox.exec(["rm", "-f", "/tmp/look.tar"], timeout=DEADLINE_S)
    state: State = {}
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
        for entry in tar:
            path = os.fsencode(entry.name.removeprefix("./"))
            if is_leftover(path, entry.size):
                continue
            if entry.issym():
                state[path] = ("link", os.fsencode(entry.linkname), False)
            elif entry.isreg() or entry.islnk():
                file = tar.extractfile(entry)
                assert file is not None
                state[path] = ("file", file.read(), bool(entry.mode & 0o100))
    return state


def _lost(given: State, now: State, patch: Patch) -> str:
    if patch.problem:
        return f"problem: {patch.problem}"
    after = dict(given)
    for change in patch.changes:
        _put(after, change)
    if wrong := _differing(after, now):
        return f"the changes lack {wrong}"
    with tempfile.TemporaryDirectory(prefix="longhaul-lost-") as scratch:
        place = Path(scratch) / "tree"
        place.mkdir()
        for path, (kind, content, runs) in given.items():
            here = place / os.fsdecode(path)
            here.parent.mkdir(parents=True, exist_ok=True)
            if kind == "link":
                here.symlink_to(os.fsdecode(content))
            else:
                here.write_bytes(content)
                here.chmod(0o755 if runs else 0o644)
        if patch.diff:
            done = _apply(place, patch.diff)
            if done.returncode:
                return f"git apply: {done.stderr.decode(errors='replace')[:300]}"
        applied: State = {}
        for here in place.rglob("*"):
            path = os.fsencode(here.relative_to(place))
            if here.is_symlink():
                applied[path] = ("link", os.fsencode(here.readlink()), False)
            elif here.is_file():
                applied[path] = ("file", here.read_bytes(), bool(here.stat().st_mode & 0o100))
        wrong = _differing(applied, now)
        return f"git apply makes another {wrong}" if wrong else ""


def _put(state: State, change: Change) -> None:
    path = change.path.encode()
    state.pop(path, None)
    if change.kind != "deleted":
        state[path] = (change.kind, change.content, change.executable)


def _differing(one: State, other: State) -> list[bytes]:
    return sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path))[:5]


def _apply(place: Path, diff: str) -> subprocess.CompletedProcess[bytes]:
    settings = {**os.environ, "GIT_CEILING_DIRECTORIES": str(place.parent), "GIT_CONFIG_NOSYSTEM": "1"}
    settings["GIT_CONFIG_GLOBAL"] = "/dev/null"
    command = ["git", "apply", "-"]
    return subprocess.run(
        command, cwd=place, env=settings, input=diff.encode(), capture_output=True, timeout=DEADLINE_S, check=False
    )


def _run(command: list[str], cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, timeout=DEADLINE_S)


if __name__ == "__main__":
    for lost in asyncio.run(losses(300)):
        print(lost)

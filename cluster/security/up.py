"""`longhaul cluster up HOST...`: Ray over hosts, protected by a token and by certificates that one command makes.

The first host is the head. What must be run on a host is a script for its shell, secrets included: `--ssh` gives it to
that host's shell on standard input, where no list of processes shows it; otherwise one file a host is written for
pasting.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.security import certificates
from cluster.security.ray_environment import FOLDER, environment, folder

_START_S = 300


def up(arguments: Sequence[str], program: str) -> int:
    """Start. Returns 0; 1 where a host did not come up, whose words are shown; 2 for what was mistyped."""
    parser = _parser(program, "Start Ray on hosts, protected by a token and by TLS. The first host is the head.")
    parser.add_argument("--join", metavar="HEAD", help="these hosts join the cluster of that head, which is up")
    parser.add_argument("--flags", default="", help="further flags of `ray start` on these hosts, as one word")
    parser.add_argument("--port", type=int, default=6379, help="of the head (default: %(default)s)")
    options = parser.parse_args(arguments)
    mine = folder()
    credentials = certificates.load(mine)
    if credentials is None:
        if options.join:
            print(
                f"{program}: {mine} has no credentials of a cluster to join: run this where it was set up",
                file=sys.stderr,
            )
            return 2
        credentials = certificates.generate()
        certificates.save(credentials, mine)
    addresses = [_address(host) for host in options.hosts]
    head = f"{options.join or addresses[0]}:{options.port}"
    flags = shlex.split(options.flags)
    scripts = {}
    for host, address in zip(options.hosts, addresses, strict=True):
        is_head = not options.join and host == options.hosts[0]
        role = ["--head", f"--port={options.port}", "--dashboard-host=127.0.0.1"] if is_head else [f"--address={head}"]
        identity = certificates.issue(credentials.authority, [address])
        start = ["start", *role, f"--node-ip-address={address}", "--disable-usage-stats", *flags]
        scripts[host] = install(options.there, credentials, identity) + _ray(options.python, options.there, start)
    status = _carry_out(scripts, options.ssh, mine, program)
    if status == 0 and options.ssh:
        print(f"up: longhaul run --ray-address {head} --network.bind 0.0.0.0 ...")
    return status


def down(arguments: Sequence[str], program: str) -> int:
    """Stop Ray on hosts. Returns as `up` does."""
    options = _parser(program, "Stop Ray on hosts.").parse_args(arguments)
    scripts = {host: _ray(options.python, options.there, ["stop"]) for host in options.hosts}
    return _carry_out(scripts, options.ssh, folder(), program)


def credentials(arguments: Sequence[str], program: str) -> int:
    """Make credentials, and print what a shell must `eval` before it starts Ray or a run. Returns 0, or 2."""
    parser = argparse.ArgumentParser(
        prog=program, description="Make a token and certificates, and print the variables with which Ray uses them."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where they are put, for their owner alone")
    parser.add_argument("hosts", nargs="+", metavar="ADDRESS", help="of every host that will use them")
    parser.add_argument(
        "--authority", type=Path, help="folder that may sign for a cluster that is there (default: DIR)"
    )
    options = parser.parse_args(arguments)
    place = options.folder.absolute()
    found = certificates.load(options.authority or place)
    if found is None:
        if options.authority:
            print(f"{program}: {options.authority} has no credentials of a cluster", file=sys.stderr)
            return 2
        found = certificates.generate()
        certificates.save(found, place)
    subprocess.run(
        ["sh", "-s"],
        input=install(str(place), found, certificates.issue(found.authority, options.hosts)),
        text=True,
        check=True,
    )
    print(_exports(str(place)), end="")
    return 0


def install(there: str, credentials: certificates.Credentials, identity: certificates.Identity) -> str:
    """Lines for a host's shell that put its credentials into the folder `there`, for their owner alone."""
    files = {
        "token": credentials.token.encode(),
        "authority.pem": credentials.authority.certificate,
        "host.pem": identity.certificate,
        "host.key": identity.key,
    }
    lines = ["set -eu", "umask 077", f"mkdir -p {_path(there)}"]
    for name, data in files.items():
        text = data.decode().strip()
        lines += [f"cat >{_path(there)}/{name} <<'END'", text, "END"]
    return "\n".join(lines) + "\n"


def _ray(python: str, there: str, arguments: Sequence[str]) -> str:
    return f"{_exports(there)}exec {shlex.quote(str(Path(python).with_name('ray')))} {shlex.join(arguments)}\n"


def _exports(there: str) -> str:
    return "".join(f"export {name}={_path(value)}\n" for name, value in environment(there).items())


def _carry_out(scripts: dict[str, str], ssh: str | None, mine: Path, program: str) -> int:
    """In turn, the head first: the others look for it."""
    if not ssh:
        print("# on each host, in this order (they hold secrets; remove them afterwards):")
        for host, script in scripts.items():
            path = mine / f"{_address(host)}.sh"
            path.touch(mode=0o600)
            path.write_text(script)
            print(f"ssh {shlex.quote(host)} sh -s < {shlex.quote(str(path))}")
        return 0
    for host, script in scripts.items():
        print(f"{host} ...", flush=True)
        try:
            done = subprocess.run(
                [*shlex.split(ssh), host, "sh -s"],
                input=script,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_START_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"{program}: {host}: {error}", file=sys.stderr)
            return 1
        if done.returncode:
            said = "\n".join(done.stdout.strip().splitlines()[-5:])
            print(
                f"{program}: {host}: {Path(shlex.split(ssh)[0]).name} ended with {done.returncode}:\n{said}",
                file=sys.stderr,
            )
            return 1
    return 0


def _parser(program: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("hosts", nargs="+", metavar="HOST", help="[USER@]ADDRESS, as the other hosts reach it")
    parser.add_argument("--ssh", nargs="?", const="ssh", metavar="COMMAND", help="do it, over ssh (default: print it)")
    parser.add_argument("--python", default=sys.executable, help="that of Longhaul on the hosts (default: as here)")
    parser.add_argument(
        "--there", default=FOLDER, metavar="DIR", help="where hosts keep credentials (default: %(default)s)"
    )
    return parser


def _address(host: str) -> str:
    return host.rpartition("@")[2]


def _path(text: str) -> str:
    """Quoted for a shell, `~` still meaning that host's home."""
    return f'"$HOME"/{shlex.quote(text[2:])}' if text.startswith("~/") else shlex.quote(text)

"""An image from this host's own programs, for tasks and tests without a registry at hand.

The closure of a shell, the usual tools, git and the Python that runs us: each program, the libraries that `ldd` names,
and the standard library; one layer, loaded through the daemon's ordinary API.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from aiodocker import Docker, DockerError

from protocol.errors import SandboxError

LAYOUT = 3  # of the image: another number, another image
REPOSITORY = "longhaul-host"
LOAD_DEADLINE_S = 300.0
PROGRAMS = [
    "bash",
    "sh",
    "env",
    "git",
    "grep",
    "sed",
    "awk",
    "gawk",
    "mawk",
    "find",
    "xargs",
    "diff",
    "cmp",
    "patch",
    "tar",
    "gzip",
    "xz",
    "less",
    "ps",
    "kill",
    "pgrep",
    "pkill",
    "mount",
    "umount",
    "unshare",
    "setsid",
    "timeout",
    "file",
    "which",
    "ls",
    "cat",
    "cp",
    "mv",
    "rm",
    "ln",
    "mkdir",
    "rmdir",
    "touch",
    "chmod",
    "chown",
    "stat",
    "head",
    "tail",
    "wc",
    "sort",
    "uniq",
    "cut",
    "tr",
    "tee",
    "seq",
    "sleep",
    "true",
    "false",
    "echo",
    "printf",
    "test",
    "expr",
    "date",
    "id",
    "whoami",
    "uname",
    "hostname",
    "pwd",
    "basename",
    "dirname",
    "readlink",
    "realpath",
    "mktemp",
    "mkfifo",
    "mknod",
    "dd",
    "df",
    "du",
    "od",
    "base64",
    "md5sum",
    "sha256sum",
    "yes",
    "nproc",
    "nohup",
    "nice",
    "sync",
]
# What wheels expect of every system.
LOADED_LATER = (
    *("libgcc_s.so.1", "libstdc++.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0", "libutil.so.1"),
    "libresolv.so.2",
)
LIBRARY_PLACES = ("usr/lib/*-linux-gnu", "usr/lib64")
SKIPPED = {"__pycache__", "site-packages", "dist-packages", "test", "idlelib", "turtledemo", "ensurepip", "config"}
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


def host_image() -> str:
    """Name of the image that this host's programs make; another when one of them changes."""
    digest = hashlib.sha256(f"{sys.version} {LAYOUT}".encode())
    for path in _programs():
        digest.update(f"{path}:{path.stat().st_mtime_ns}".encode())
    return f"{REPOSITORY}:{digest.hexdigest()[:16]}"


async def ensure_host_image(client: Docker) -> str:
    """Have `host_image()` in a daemon; its name. Takes seconds the first time. Raises `SandboxError` (kind: image)."""
    name = host_image()
    try:
        await client.images.inspect(name)
        return name
    except DockerError as error:
        if error.status != 404:
            raise SandboxError(f"cannot look for image {name}: {error}", kind="image") from error
    with tempfile.TemporaryDirectory(prefix="longhaul-image-") as scratch:
        archive = Path(scratch) / "image.tar"
        await asyncio.to_thread(_write_image, name, archive)
        try:
            async with asyncio.timeout(LOAD_DEADLINE_S):
                with archive.open("rb") as file:
                    await client.images.import_image(file)
        except (DockerError, TimeoutError, OSError) as error:
            raise SandboxError(f"cannot load image {name}: {error}", kind="image") from error
    return name


def _write_image(name: str, archive: Path) -> None:
    """A tar as `docker load` takes it: one layer, its configuration, and a manifest that names both."""
    layer = archive.with_name("layer.tar")
    with tarfile.open(layer, "w") as tar:
        _write_layer(tar)
    with layer.open("rb") as file:
        identity = hashlib.file_digest(file, "sha256").hexdigest()
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    configuration = {
        "architecture": machine,
        "os": "linux",
        "config": {"Env": [f"PATH={PATH}"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{identity}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as tar:
        _add_text(tar, "config.json", json.dumps(configuration))
        _add_text(tar, "manifest.json", json.dumps(manifest))
        tar.add(layer, "layer.tar")


def _write_layer(tar: tarfile.TarFile) -> None:
    added: set[str] = set()
    for link in ("bin", "sbin", "lib", "lib64"):
        if (Path("/") / link).is_symlink():
            _add_path(tar, Path("/") / link, added)
    for name, mode in {"tmp": 0o1777, "root": 0o700, "etc": 0o755, "home": 0o755, "var/tmp": 0o1777}.items():
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, mode
        tar.addfile(entry)
    _add_text(tar, "etc/passwd", "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n")
    _add_text(tar, "etc/group", "root:x:0:\nnogroup:x:65534:\n")
    _add_text(tar, "etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n")
    files = [*_programs(), *_python_files(), *_git_files()]
    for path in [*files, *_libraries(files)]:
        _add_path(tar, path, added)
    python = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    for name in ("python3", "python"):
        entry = tarfile.TarInfo(f"usr/local/bin/{name}")
        entry.type, entry.linkname = tarfile.SYMTYPE, str(python)
        tar.addfile(entry)


def _add_path(tar: tarfile.TarFile, path: Path, added: set[str]) -> None:
    """Add a file and, where it is a link, what it leads to."""
    while str(path) not in added:
        place = path.parent.resolve() / path.name  # through /bin -> /usr/bin, so that no link becomes a directory
        if path.parent != Path("/") and str(place) not in added:
            added.add(str(place))
            tar.add(place, recursive=False, filter=_owned_by_root)
        elif path.parent == Path("/"):
            tar.add(path, recursive=False, filter=_owned_by_root)
        added.add(str(path))
        if not place.is_symlink():
            return
        path = place.parent / place.readlink()
        if path.is_dir():
            return


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode &= 0o1777  # no setuid programs
    return entry


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(text.encode()), 0o644
    tar.addfile(entry, io.BytesIO(text.encode()))


def _programs() -> list[Path]:
    found = [shutil.which(name, path=PATH) for name in PROGRAMS]
    interpreter = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    return [*(Path(path) for path in found if path is not None), interpreter]


def _python_files() -> Iterator[Path]:
    home = Path(sys.base_prefix) / "lib" / f"python3.{sys.version_info.minor}"
    for folder, folders, files in os.walk(home):
        folders[:] = [name for name in folders if name not in SKIPPED and not name.startswith("config-")]
        yield from (Path(folder) / name for name in files if not name.endswith((".pyc", ".a")))


def _git_files() -> Iterator[Path]:
    for home in (Path("/usr/lib/git-core"), Path("/usr/libexec/git-core"), Path("/usr/share/git-core")):
        for folder, _, files in os.walk(home):
            yield from (Path(folder) / name for name in files)


def _libraries(files: list[Path]) -> list[Path]:
    """What the loader would load for the programs and extension modules among `files`."""
    binaries = [str(path) for path in files if path.suffix not in (".py", ".h", ".txt") and _is_elf(path)]
    found: set[Path] = set()
    for start in range(0, len(binaries), 200):
        done = subprocess.run(
            ["ldd", *binaries[start : start + 200]], capture_output=True, text=True, timeout=60, check=False
        )
        for line in done.stdout.splitlines():
            found.update(Path(word) for word in line.split() if word.startswith("/") and not word.endswith(":"))
    for place in LIBRARY_PLACES:
        found.update(path for name in LOADED_LATER for path in Path("/").glob(f"{place}/{name}"))
    return sorted(path for path in found if path.is_file())


def _is_elf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False

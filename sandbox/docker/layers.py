"""Empties the writable layer of a container that its daemon cannot remove."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

from aiodocker.containers import DockerContainer

DEADLINE_S = 300.0
_INSIDE = "/blocked"


async def clear_layer(container: DockerContainer) -> None:
    """Remove all that a stopped container wrote: from here where we may, else by another container of its image, to
    which the daemon shows the layer. Raises one of `Failures`."""
    shown = await container.show()
    layer = (shown.get("GraphDriver", {}).get("Data") or {}).get("UpperDir", "")
    if not layer or await asyncio.to_thread(_clear_here, Path(layer)):
        return
    place = Path(layer)
    helper = await container.docker.containers.create(
        {
            "Image": shown["Image"],
            "Entrypoint": ["rm", "-rf", "--", f"{_INSIDE}/{place.name}"],
            "Cmd": [],
            "User": "0:0",
            "Labels": shown["Config"]["Labels"] or {},
            "NetworkDisabled": True,
            "HostConfig": {
                "NetworkMode": "none",
                "Mounts": [{"Type": "bind", "Source": str(place.parent), "Target": _INSIDE}],
            },
        }
    )
    try:
        await helper.start()
        await helper.wait(timeout=DEADLINE_S)
    finally:
        await helper.delete(force=True)


def _clear_here(layer: Path) -> bool:
    """Whether it could be done from here."""
    if os.geteuid() != 0 or not layer.is_dir():
        return False
    command = ["find", str(layer), "-xdev", "-mindepth", "1", "-maxdepth", "1", "-exec", "rm", "-rf", "--", "{}", "+"]
    subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False)
    return True

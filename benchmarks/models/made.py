"""The small random model of a family, as a run has it: of a wrapper, its text part."""

from __future__ import annotations

from pathlib import Path


def made(name: str, folder: Path) -> Path:
    """A model directory in `folder`."""
    from learner.checkpoints.wrapper import text_part
    from tiny.families import save_random_family
    from tiny.wrappers import WRAPPERS, save_random_wrapper

    if name in WRAPPERS:
        return text_part(save_random_wrapper(folder / name, name), folder / "text-parts")
    return save_random_family(folder / name, name)

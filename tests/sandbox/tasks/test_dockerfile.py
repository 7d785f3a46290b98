"""The working directory of an image, from its Dockerfile alone; nothing is guessed."""

from __future__ import annotations

import pytest

from sandbox.tasks.dockerfile import workdir_of

TEXTS = {
    "none": ("FROM python:3\nRUN true\n", ""),
    "one": ("FROM python:3\nworkdir /app\n", "/app"),
    "in quotes, with a slash": ('FROM python:3\nWORKDIR "/srv/my app/"\n', "/srv/my app"),
    "relative": ("FROM python:3\nWORKDIR /srv\nWORKDIR app\nWORKDIR ../b\n", "/srv/b"),
    "relative to another image's": ("FROM python:3\nWORKDIR app\n", ""),
    "a variable": ("FROM python:3\nENV HOME=/x\nWORKDIR $HOME/app\n", ""),
    "below a variable": ("FROM python:3\nWORKDIR ${X}\nWORKDIR app\n", ""),
    "over several lines": ("FROM python:3\nWORKDIR \\\n  /app\n", "/app"),
    "in a comment": ("FROM python:3\n# WORKDIR /app\n", ""),
    "of another stage": ("FROM golang AS build\nWORKDIR /build\nFROM debian\nCOPY --from=build /build/x /x\n", ""),
    "of the stage it is made from": ("FROM a AS Base\nWORKDIR /app\nFROM --platform=linux/amd64 base\nRUN x\n", "/app"),
    "windows lines": ("FROM python:3\r\nWORKDIR /app\r\n", "/app"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_workdir(case: str) -> None:
    text, expected = TEXTS[case]
    assert workdir_of(text) == expected

"""The frozen list of settings: a new knob is a decision, and shows in a diff."""

from pathlib import Path

from cluster.command_line.cli import setting_names

FROZEN = Path(__file__).with_name("knobs.txt")


def test_every_setting_is_on_the_list():
    listed = FROZEN.read_text().split()
    current = list(setting_names())
    new, gone = sorted(set(current) - set(listed)), sorted(set(listed) - set(current))
    assert not new, f"new settings {new}: can a default, or an existing one, do it? If not, add them to {FROZEN.name}"
    assert not gone, f"settings {gone} are gone: take them off {FROZEN.name}"

"""Only an endpoint with the run's own tokenizer is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from learner.teacher.grading import check_teacher
from protocol.config import Settings
from protocol.errors import ConfigError
from tests.learner.teacher.fake_server import FakeTeacher
from tiny.model import build_tokenizer


def settings_of(student: Path, teacher: FakeTeacher, **loss: object) -> Settings:
    loss = {"name": "distill", "reference_endpoint": teacher.address, "reference_name": "teacher"} | loss
    return Settings.model_validate({"model": {"path": str(student)}, "learner": {"loss": loss}})


async def test_the_runs_own_tokenizer_is_taken(student: Path, teacher: FakeTeacher) -> None:
    await check_teacher(settings_of(student, teacher))
    assert len(teacher.asked) == 1, "that it scores is tried"
    plain = teacher.spell
    teacher.spell = lambda ids: plain(ids).replace(" .", ".").replace(" ,", ",").replace(" 's", "'s")
    await check_teacher(settings_of(student, teacher))  # spelt by a tokenizer that cleans up, the same tokens


async def test_nothing_is_asked_where_no_loss_wants_it(student: Path, teacher: FakeTeacher) -> None:
    await check_teacher(settings_of(student, teacher, name="dapo"))
    assert not teacher.asked
    await check_teacher(settings_of(student, teacher, name="dapo", kl_coef=0.1))
    assert teacher.asked


async def test_another_tokenizer_is_refused(student: Path, teacher: FakeTeacher) -> None:
    other = build_tokenizer(["quite another text, with other words"] * 9, vocab_size=300).backend_tokenizer
    teacher.spell = lambda ids: other.decode(ids, skip_special_tokens=False)
    with pytest.raises(ConfigError, match=r"its tokenizer is not that of .* are other tokens there"):
        await check_teacher(settings_of(student, teacher))


async def test_two_bytes_that_changed_places_are_seen(student: Path, teacher: FakeTeacher) -> None:
    own = Tokenizer.from_file(str(student / "tokenizer.json"))
    first, second = own.token_to_id("Ã"), own.token_to_id("Ä")  # bytes 195 and 196, no characters by themselves
    swapped = {first: second, second: first}
    cut, spell = teacher.cut, teacher.spell
    teacher.cut = lambda text: [swapped.get(i, i) for i in cut(text)]
    teacher.spell = lambda ids: spell([swapped.get(i, i) for i in ids])
    with pytest.raises(ConfigError, match="it cuts up text in another way"):
        await check_teacher(settings_of(student, teacher))


async def test_a_server_that_does_not_spell_is_refused(student: Path, teacher: FakeTeacher) -> None:
    teacher.spell = lambda ids: None  # type: ignore[assignment, return-value]
    with pytest.raises(ConfigError, match="its tokenizer"):
        await check_teacher(settings_of(student, teacher))
    teacher.address = teacher.address.replace("/v1", "/else/v1")
    with pytest.raises(ConfigError, match="answered 404"):
        await check_teacher(settings_of(student, teacher))


async def test_another_model_one_that_is_too_short_and_one_that_is_away_are_refused(
    student: Path, teacher: FakeTeacher
) -> None:
    with pytest.raises(ConfigError, match=r"--learner\.loss\.reference-name small: .* serves teacher"):
        await check_teacher(settings_of(student, teacher, reference_name="small"))
    teacher.max_model_len = 2048
    with pytest.raises(ConfigError, match="start it with --max-model-len 2049 or more"):
        await check_teacher(settings_of(student, teacher))
    teacher.address = "http://127.0.0.1:9/v1"
    with pytest.raises(ConfigError, match=r"no answer within 0\.3 s"):
        await check_teacher(settings_of(student, teacher), timeout_s=0.3)

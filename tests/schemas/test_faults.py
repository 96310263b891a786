"""A stranger's mistakes are told in text that does nothing to a terminal."""

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.faults import first_fault


class Setting(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rank: int = Field(default=8, ge=1)


def fault_of(payload: str, longest: int = 300) -> tuple[str, str]:
    with pytest.raises(ValidationError) as caught:
        Setting.model_validate_json(payload)
    return first_fault(caught.value, longest)


def test_a_fault_is_named_with_its_place() -> None:
    assert fault_of('{"rank": 0}') == ("rank", "rank: Input should be greater than or equal to 1")


def test_what_is_wrong_as_a_whole_has_no_place() -> None:
    where, text = fault_of("[]")
    assert where == "" and text.startswith("Input should be an object")


@pytest.mark.parametrize("name", ["\x7f", "\x1b[2J", "a\nb", "\u202e", "\x9b31m"])
def test_a_name_that_a_stranger_chose_is_escaped(name: str) -> None:
    where, text = fault_of(Setting.model_construct(rank=1).model_dump_json().replace("rank", name.join("rk")))
    assert where.isprintable() and where.isascii() and text.isprintable() and text.isascii()
    assert where in text


@pytest.mark.parametrize("letter", ["x", "\u202e"])
def test_a_fault_is_short_however_long_a_name_is(letter: str) -> None:
    where, text = fault_of(f'{{"{letter * 5000}": 1}}', longest=200)
    assert len(where) == 100 and len(text) == 200

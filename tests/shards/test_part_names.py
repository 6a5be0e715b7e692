"""Which part a process is told to make, by hand or by its scheduler."""

import pytest

from medclip_jax.shards.parts import Part, parse_part
from medclip_jax.shards.record import ShardError


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("3/8", {}, (3, 8)),
        ("auto", {"ID": 7, "MIN": 1, "MAX": 32, "COUNT": 32}, (7, 32)),
        ("auto", {"ID": 0, "MIN": 0, "MAX": 31, "COUNT": 32}, (1, 32)),
        ("auto", {"ID": 5, "MIN": 1, "MAX": 9, "COUNT": 5, "STEP": 2}, (3, 5)),
        ("auto/32", {"ID": 32, "MIN": 1, "MAX": 32, "COUNT": 32}, (32, 32)),
        ("auto/4", {"JOB": 0}, (1, 4)),
        ("auto", {"JOB": 3, "MEDCLIP": 4}, (4, 4)),
    ],
)
def test_parts_by_hand_and_by_scheduler(text, environment, expected):
    assert parse_part(text, _environment(environment)) == Part(*expected)


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("0/8", {}, "parts count from 1"),
        ("9/8", {}, "1/8 to 8/8"),
        ("3", {}, "write i/n such as 3/8"),
        ("some", {}, "write i/n"),
        ("auto", {}, "no array job"),
        ("auto", {"JOB": 3}, "set MEDCLIP_PART_COUNT"),
        ("auto", {"ID": 7, "MIN": 3, "MAX": 9, "COUNT": 3}, "not a full array"),
        ("auto/32", {"ID": 7, "MIN": 7, "MAX": 8, "COUNT": 2}, "not a full array of 32"),
    ],
)
def test_parts_that_are_no_parts(text, environment, message):
    with pytest.raises(ShardError, match=message):
        parse_part(text, _environment(environment))


def _environment(short: dict[str, int]) -> dict[str, str]:
    names = {"JOB": "JOB_COMPLETION_INDEX", "MEDCLIP": "MEDCLIP_PART_COUNT"}
    return {names.get(name, f"SLURM_ARRAY_TASK_{name}"): str(value) for name, value in short.items()}

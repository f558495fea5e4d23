"""`sam-alm mix`; what is in the mix is tested in tests/data/test_openreasonaqa.py."""

import pytest


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--seed", "-1", "an integer from 0"),
        ("--cutoff", "-5", "a positive integer"),
        ("--size", "0", "a positive integer"),
        ("--max-missing", "5", "a number from 0 to 1"),
        ("--closed-prefix", "nan", "a number from 0 to 1"),
    ],
)
def test_values_out_of_range_are_refused(command, tmp_path, option, value, expected):
    words = ("--openaqa", "a.json", "--reasonaqa", "b.json", "--output", tmp_path / "out", option, value)
    command("mix", *words, status=2, error=f"{option}: got '{value}', expected {expected}")
    assert not (tmp_path / "out").exists()

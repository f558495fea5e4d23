"""Tables as text."""

from sam_lab.common.text_tables import text_table


def test_columns_stand_to_the_right_or_to_the_left():
    rows = [("name", "number", "unit"), ("a longer name", "7", "")]
    assert text_table(rows).splitlines() == ["name           number  unit", "a longer name       7"]
    assert text_table(rows, align="left").splitlines() == ["name           number  unit", "a longer name  7"]

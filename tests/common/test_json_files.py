"""JSON files of records, in one piece or line by line, whole or truncated."""

import gzip
import json
import math

import pytest

from sam_lab.common.json_files import read_json

NASTY = [
    {"text": 'a]b}c{d[e,"f\\\\', "n": -12.5e-3, "deep": {"list": [1, [2, {"x": None}]]}},
    {},
    {"é€😀": "Ünïcödé 漢字 😀", "escaped": "line\nbreak\t\u2028", "t": True, "f": False, "z": [], "e": {}},
    {"last": math.inf},
]


def nasty_texts():
    yield json.dumps(NASTY)
    yield json.dumps(NASTY, indent=1, ensure_ascii=False)  # as LTU writes
    yield "\ufeff \n" + json.dumps(NASTY, separators=(" \t,\r\n", " : ")) + "\n\n "


@pytest.mark.parametrize("text", list(nasty_texts()), ids=["ascii", "indented", "spaces"])
def test_a_list_is_read_as_json_reads_it_wherever_it_is_split(tmp_path, text):
    path = tmp_path / "list.json"
    path.write_text(text, encoding="utf-8")
    expected = list(enumerate(json.loads(text.lstrip("\ufeff")), 1))
    assert [record for _, record in expected] == NASTY
    for chunk_size in range(1, len(text.encode()) + 2):
        assert list(read_json(path, chunk_size)) == expected, chunk_size


def test_an_empty_list(tmp_path):
    for text in ("[]", " [ \n ] "):
        (tmp_path / "list.json").write_text(text)
        assert list(read_json(tmp_path / "list.json", 1)) == []


def test_json_lines(tmp_path):
    path = tmp_path / "records.json"
    path.write_text("\n" + "\n\n".join(json.dumps(item, ensure_ascii=False) for item in NASTY), encoding="utf-8")
    assert list(read_json(path)) == list(enumerate(NASTY, 1))


def test_a_list_that_is_cut_off_is_an_error_wherever_it_is_cut(tmp_path):
    path = tmp_path / "list.json"
    text = json.dumps(NASTY, ensure_ascii=False).encode()
    whole = list(enumerate(NASTY, 1))
    for size in range(1, len(text)):
        path.write_bytes(text[:size])
        for chunk_size in (7, 1 << 20):
            read = []
            with pytest.raises(ValueError, match=r"list\.json: .*(truncated|cut off)") as error:
                for item in read_json(path, chunk_size):
                    read.append(item)
            assert read == whole[: len(read)]
            assert f"after {len(read)} records" in str(error.value)


def test_where_a_list_is_cut_off_is_said(tmp_path):
    path = tmp_path / "list.json"
    path.write_text('[{"a": "é"}, {"b": 2}, {"c": "thr', encoding="utf-8")
    with pytest.raises(ValueError, match=r"the file ends within record 3 .*truncated, at byte 24, after 2 records"):
        list(read_json(path))
    path.write_text('[{"a": "é"}, {"b": 2}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"the list ends without \] .*truncated, at byte 22, after 2 records"):
        list(read_json(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1} {"b": 2}]', "got '{', expected a comma or ], at byte 10, after 1 records"),
        ('[{"a": 1},, {"b": 2}]', "got ',', expected a record, at byte 10"),
        ('[{"a": 1},]', "got ']', expected a record"),
        ('[, {"a": 1}]', "got ',', expected a record or ]"),
        ('[{"a": 1}, 5]', "got '5', expected a record"),
        ('[{"a": 1}] []', "got '[' after the end of the list, at byte 11"),
        ('[{"a": 1}, {"b": 2 "long": "enough to be no cut"}]', "record 2 is malformed (Expecting ',' delimiter)"),
        ('"text"', "begins with b'\"', expected a JSON list of records"),
        ("", "the file is empty, expected a JSON list"),
        ('{"a": 1}\n{"b": 2', "record 2 (line 2) is malformed or truncated"),
        ('{"a": 1}\n\n[2]', "record 2 (line 3) is not an object"),
        ('{"data": [\n{"a": 1}]}', "record 1 (line 1) is malformed or truncated"),
    ],
)
def test_what_is_no_list_of_records_is_an_error(tmp_path, text, message):
    path = tmp_path / "list.json"
    path.write_text(text)
    for chunk_size in (1, 1 << 20):
        with pytest.raises(ValueError) as error:
            list(read_json(path, chunk_size))
        assert str(path) in str(error.value) and message in str(error.value)


def test_a_malformed_record_does_not_take_the_rest_of_the_file(tmp_path):
    """It is seen at once where it cannot be a cut, not when all of the file is in memory."""
    path = tmp_path / "list.json"
    path.write_bytes(b'[{"a": 1}, {"b" 2}, ' + b" " * 10_000 + b"\xff")  # what comes behind would be another error
    items = read_json(path, 1000)
    assert next(items) == (1, {"a": 1})
    with pytest.raises(ValueError, match="record 2 is malformed"):
        next(items)
    path.write_text('[{"a": "' + "x" * 40_000_000)  # a quotation mark is missing: it gives up
    with pytest.raises(ValueError, match=r"record 1 is malformed .Unterminated string"):
        next(read_json(path, 1 << 24))


def test_bytes_that_are_not_utf8_are_an_error(tmp_path):
    path = tmp_path / "list.json"
    path.write_bytes(b'[{"a": "' + "é".encode("latin-1") + b'"}]')
    for chunk_size in (1, 3, 1 << 20):
        with pytest.raises(ValueError, match="byte 8, after 0 records, is not UTF-8"):
            list(read_json(path, chunk_size))


def test_a_packed_file(tmp_path):
    for text in (json.dumps(NASTY), "\n".join(map(json.dumps, NASTY))):
        (tmp_path / "list.json.gz").write_bytes(gzip.compress(text.encode()))
        assert list(read_json(tmp_path / "list.json.gz", 7)) == list(enumerate(NASTY, 1))

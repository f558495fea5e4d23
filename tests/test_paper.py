"""PAPER.md points to what exists, and counts what the paper's tables hold."""

import ast
import json
import re
from itertools import pairwise
from math import expm1
from pathlib import Path

import pytest
from shared import MMAU_MINI, PAPER_TABLES, needs, shared

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "PAPER.md").read_text(encoding="utf-8")

SIZES = ("130M", "780M", "2.7B")
CLASSIFICATION = ("ESC", "DCASE", "VS", "TUT", "BJO", "VGG", "FSD", "AS")
CAPTIONS = ("AC", "CL")
ALL = CLASSIFICATION + CAPTIONS


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def definitions(path: Path) -> set[str]:
    """Names that a module defines at its top, and those of its classes with the class's name before."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
            if isinstance(node, ast.ClassDef):
                found |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return found


REFERENCES = sorted(set(re.findall(r"`([\w/]+(?:\.py|/gpu))(?:::?([\w.]+))?`", TEXT)))


def test_there_are_references():
    assert len(REFERENCES) > 20


@pytest.mark.parametrize(("file", "name"), REFERENCES)
def test_what_is_named_exists(file, name):
    assert (ROOT / file).exists()
    if name:
        assert name in definitions(ROOT / file)


def test_every_part_of_the_paper_has_a_row():
    first = "\n".join(row[0] for row in rows("Where it is"))
    parts = [
        f"Section {number}" for number in ("1", "2", "2.1", "2.2", "2.3", "3.1", "3.2", "3.3", "4.1", "4.2", "4.3")
    ]
    parts += [f"Equation ({n})" for n in range(1, 5)] + [f"Table {n}" for n in range(1, 6)]
    parts += [f"Figure {n}" for n in range(1, 4)] + ["Section 5"]
    assert [part for part in parts if part not in first] == []


def test_every_row_has_code_or_says_that_it_is_not_built():
    for part, code, *_ in rows("Where it is"):
        assert code or part in ("Section 1, abstract", "Section 5"), part
        assert not code or ".py" in code or "not built yet" in code, part


def test_the_ratio_of_exact_hold_and_euler_form():
    assert f"{expm1(-1.6) / -1.6:.4f} (ΔA = −1.6)" in TEXT
    assert f"{expm1(-0.001) / -0.001:.4f} (ΔA = −0.001)" in TEXT


# -- The claims ---------------------------------------------------------------------------------------------------


def compare(ours: list[dict], theirs: list[dict], metrics=ALL) -> str:
    """Won / tied / lost, cell by cell."""
    cells = [(mine[metric], other[metric]) for mine, other in zip(ours, theirs, strict=True) for metric in metrics]
    won, lost = sum(a > b for a, b in cells), sum(a < b for a, b in cells)
    return f"{won} / {len(cells) - won - lost} / {lost}"


@pytest.fixture(scope="module")
def tables():
    return json.loads(shared(PAPER_TABLES).read_text())


def test_claims_are_as_counted(tables):
    claims = {row[0]: row for row in rows("What it claims, and what its tables show")}
    by_name = {row.get("experiment", row["model"]): row for row in tables["table1"]["rows"]}

    def e(*numbers):
        return [by_name[f"E{number}"] for number in numbers]

    def best(*names):
        return [{metric: max(by_name[name][metric] for name in names) for metric in ALL}]

    baselines = ("LTU-7B", "GAMA-7B", "ssLALM-2.8B")
    sevens = best("LTU-7B", "GAMA-7B")
    ours = [name for name in by_name if name.startswith("E")]
    tops = [name for name in ours if by_name[name]["AS"] == max(by_name[other]["AS"] for other in ours)]
    gains = [sum(e(n + 3)[0][m] - e(n)[0][m] for m in ALL) / len(ALL) for n in (1, 2, 3)]

    rank = {(row["connector"], row["model"][4:]): row["effective_rank"] for row in tables["table3"]}
    like = {(row["connector"], row["model"][4:]): row["cosine_similarity"] for row in tables["table3"]}
    connectors = ("concatenation", "time_major", "frequency_major")
    steps = [((c, small), (c, large)) for c in connectors for small, large in pairwise(SIZES)]
    drops = [[rank["concatenation", size] - rank[c, size] for c in connectors[1:]] for size in SIZES]

    swapped = tables["table4"]
    six = [metric for metric in ALL if metric in swapped[0]]
    matched = [(swapped[0][metric], max(row[metric] for row in swapped[1:])) for metric in six]

    mmau = {row["model"]: row for row in tables["table5"]["rows"]}
    columns = [name for name in mmau["LTU-7B"] if name != "model"]
    plain, reasoning = ([mmau[f"{name}-{size}"] for size in SIZES] for name in ("SAM", "SAM+OR"))
    sound = ["sound_mini", "sound_test"]
    gemma, largest = [mmau["Gemma 3n-4B"]], [mmau["SAM+OR-2.7B"]]
    always_first = {"sound_mini": 49.25, "music_mini": 30.24, "speech_mini": 39.04}
    below = [
        sum(row[key] < value for row in group for key, value in always_first.items()) for group in (reasoning, plain)
    ]

    counted = {
        "C1": [f"{compare(e(6), sevens)} of 10"],
        "C2": [f"E4: {compare(e(4), sevens)}", f"E5: {compare(e(5), sevens)}"],
        "C3": [f"also reached by {', '.join(tops)}"],
        "C4": [compare(e(6), best("ssLALM-2.8B"))],
        "C5": [f"E4 {compare(e(4), best(*baselines))}", f"E5 {compare(e(5), best(*baselines))}"],
        "C6": [f"{compare(e(4, 5, 6), e(1, 2, 3))} of 30"],
        "C7": [", ".join(f"+{gain:.2f}" for gain in gains)],
        "C8": [f"{compare(e(4, 5, 6), e(7, 8, 9))} of 30"],
        "C9": [
            f"rank {sum(rank[small] < rank[large] for small, large in steps)} of {len(steps)}",
            f"similarity {sum(like[small] > like[large] for small, large in steps)} of {len(steps)}",
        ],
        "C10": [
            f"alone at the top: {sum(a > b for a, b in matched)} of 6",
            f"tied {sum(a == b for a, b in matched)}, beaten {sum(a < b for a, b in matched)}",
            f"E5's encoder {compare(swapped[:1], swapped[1:2], six)}",
        ],
        "C11": [f"{compare(swapped[:1], e(4), six)} of 6"],
        "C12": [
            f"(b): {compare(e(4, 5, 6), e(10, 12, 14))} of 30",
            f"(c): {compare(e(4, 5, 6), e(11, 13, 15))} of 30",
        ],
        "C13": [
            f"(b) against (a): {compare(e(10, 12, 14), e(4, 5, 6), CAPTIONS)}",
            f"(c) against (a): {compare(e(11, 13, 15), e(4, 5, 6), CAPTIONS)}",
        ],
        "C14": [f"{sum(drop > 0 for size in drops for drop in size)} of 6"],
        "C15": [f"SAM-2.7B {mmau['SAM-2.7B']['sound_test']}", f"SAM+OR-2.7B {mmau['SAM+OR-2.7B']['sound_test']}"],
        "C16": [compare(reasoning, plain, columns)],
        "C17": [f"Sound: {compare(largest, gemma, sound)}", f"speech: {compare(largest, gemma, columns)}"],
        "C18": [f"SAM+OR {below[0]} of 9, SAM {below[1]} of 9", ", ".join(map(str, always_first.values()))],
        "C19": [f"{compare(e(16, 17, 18), e(4, 5, 6))} of 30"],
    }
    for key, expected in counted.items():
        assert [text for text in expected if text not in claims[key][2]] == [], key
    assert [key for key, row in claims.items() if row[2] != "not in a table"] == list(counted)

    # what the readings say
    assert compare(e(6), sevens, CLASSIFICATION).startswith("6 /") and "6 of 8" in claims["C1"][3]
    assert compare(e(6), sevens, CAPTIONS).startswith("0 /") and "0 of 2" in claims["C1"][3]
    assert [m for m in ALL if e(6)[0][m] < by_name["ssLALM-2.8B"][m]] == ["TUT", "AC"]
    assert {max(ours, key=lambda name: by_name[name][metric]) for metric in CAPTIONS} == {"E14"}
    assert all(f"{sum(drop) / 2:.1f} at {size}" in claims["C14"][3] for drop, size in zip(drops, SIZES))
    assert mmau["SAM+OR-780M"]["sound_test"] == 59.73 > mmau["SAM+OR-2.7B"]["sound_test"]
    assert max(abs(row[m] - swapped[0][m]) for row in swapped for m in six) == pytest.approx(1.3)


@needs(MMAU_MINI)
def test_always_the_first_choice_of_mmau():
    records = json.loads(MMAU_MINI.read_text())
    scores = []
    for task in ("sound", "music", "speech"):
        hits = [record["choices"][0] == record["answer"] for record in records if record["task"] == task]
        scores.append(f"{100 * sum(hits) / len(hits):.2f}")
    assert ", ".join(scores) in TEXT

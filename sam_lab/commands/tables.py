"""`sam-alm tables`: prints the paper's tables with results beside them."""

import argparse
import json
from pathlib import Path
from typing import Any

from sam_lab.common.files import write_json
from sam_lab.common.text_tables import markdown
from sam_lab.paper.numbers import CITATION, paper_tables
from sam_lab.paper.tables import claims_table, load_results, table1, table2, table4, table5

TABLES = {"1": table1, "4": table4, "5": table5}


def run(arguments: argparse.Namespace) -> int:
    """Prints the tables, and writes them to `--json`."""
    paper = paper_tables() if arguments.paper is None else _read_paper(arguments.paper)
    results, clips = load_results(arguments.results), arguments.clips
    chosen = arguments.table or (["1", "4", "5", "claims"] if not results else [])
    if not chosen:
        is_mmau = [result["benchmark"].startswith("mmau") for result in results]
        chosen = ["1"] * (not all(is_mmau)) + ["5"] * any(is_mmau)
    if ("2" in chosen) != bool(clips):
        raise ValueError(f"clips: got {clips} for the tables {', '.join(chosen)}, expected clips for Table 2 alone.")
    tables = {}
    for name in dict.fromkeys(chosen):
        if name == "claims":
            tables[name] = claims_table(paper)
        else:
            tables[name] = table2(results, clips) if name == "2" else TABLES[name](results, paper)
    print("\n".join(map(markdown, tables.values())))
    print(f"The paper: {paper.get('source', CITATION)}")
    if arguments.json is not None:
        write_json({"source": paper.get("source", CITATION), "tables": tables}, arguments.json)
    return 0


def _read_paper(path: str) -> dict[str, Any]:
    """Other numbers instead of the built-in ones, in the form of `sam_lab.paper.numbers.paper_tables`."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"paper: there is no file {path!r}.")
    paper = json.loads(Path(path).read_text(encoding="utf-8"))
    absent = [name for name in paper_tables() if name not in paper]
    if absent:
        raise ValueError(f"paper: {path!r} has no {absent[0]!r}, expected {', '.join(paper_tables())}.")
    return paper

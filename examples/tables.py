"""Prints the paper's tables with results of yours beside its numbers and its peers'.

    python examples/tables.py esc50.json clotho.json --json tables.json
    python examples/tables.py small=runs/130m/esc50.json large=runs/2.7b/esc50.json --table 1
    python examples/tables.py small=clotho_130m.json large=clotho_2.7b.json --table 2 --clips "Rain on a roof.wav"
    python examples/tables.py --table claims

Results are what `evaluate.py` writes, files or folders; NAME=PATH names a model, in Table 4 by where its encoder is from. Without
results, and for the claims (how often what the paper says is better is better, cell by cell), the paper's own numbers
are all that is needed. Output is Markdown.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sam_lab.common.files import write_json
from sam_lab.common.text_tables import markdown
from sam_lab.paper.numbers import CITATION, paper_tables
from sam_lab.paper.tables import claims_table, load_results, table1, table2, table4, table5

TABLES = {"1": table1, "4": table4, "5": table5}


def read_paper(path: str) -> dict:
    """Other numbers in the place of the built-in ones, laid out as `sam_lab.paper.numbers.paper_tables` gives them."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"paper: there is no file {path!r}.")
    paper = json.loads(Path(path).read_text(encoding="utf-8"))
    absent = [name for name in paper_tables() if name not in paper]
    if absent:
        raise ValueError(f"paper: {path!r} has no {absent[0]!r}, expected {', '.join(paper_tables())}.")
    return paper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", metavar="[NAME=]PATH", help="what evaluate.py wrote, file or folder")
    parser.add_argument(
        "--table",
        nargs="+",
        choices=["1", "2", "4", "5", "claims"],
        help="which; by default 1 and 5 as far as there are results, and all but 2 without any",
    )
    parser.add_argument("--clips", nargs="+", default=[], metavar="NAME", help="of Table 2")
    parser.add_argument("--paper", metavar="FILE", help="JSON with the paper's numbers, in the place of the built-in")
    parser.add_argument("--json", metavar="FILE", help="write the tables there too")
    args = parser.parse_args()
    try:
        paper = paper_tables() if args.paper is None else read_paper(args.paper)
        results = load_results(args.results)
        chosen = args.table or (["1", "4", "5", "claims"] if not results else [])
        if not chosen:
            is_mmau = [result["benchmark"].startswith("mmau") for result in results]
            chosen = ["1"] * (not all(is_mmau)) + ["5"] * any(is_mmau)
        if ("2" in chosen) != bool(args.clips):
            raise ValueError(
                f"clips: got {args.clips} for the tables {', '.join(chosen)}, expected clips for Table 2 alone."
            )
        tables = {}
        for name in dict.fromkeys(chosen):
            if name == "claims":
                tables[name] = claims_table(paper)
            else:
                tables[name] = table2(results, args.clips) if name == "2" else TABLES[name](results, paper)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    print("\n".join(map(markdown, tables.values())))
    print(f"The paper: {paper.get('source', CITATION)}")
    if args.json:
        write_json({"source": paper.get("source", CITATION), "tables": tables}, Path(args.json))


if __name__ == "__main__":
    main()

"""`sam-alm convert`: makes a SAM directory from published weights."""

import argparse

from sam_lab import conversion


def run(arguments: argparse.Namespace) -> int:
    """Converts, and prints the sources, the size and what is untrained."""
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    print(conversion.convert(**given))
    return 0

"""The recipes of the package, by name. Nothing here is slow to import."""

import re
from pathlib import Path

RECIPES = Path(__file__).parent / "recipes"


def recipe_names() -> dict[str, str]:
    """The package's recipes: the first comment line of each by its name, E2 before E10."""

    def in_order(file: Path) -> list[str | int]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.stem)]

    files = sorted(RECIPES.glob("*.yaml"), key=in_order)
    return {file.stem: file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for file in files}


def find_recipe(recipe: str | Path) -> Path:
    """The file of a recipe.

    Args:
        recipe (`str` or `Path`): The path of a YAML file, or a word without a suffix: the name of one of the package's
            recipes in any case, or else a file.

    Raises:
        ValueError: An unknown name.
        FileNotFoundError: No such file.
    """
    path, packaged = Path(recipe), {name.lower(): name for name in recipe_names()}
    is_word = not path.suffix and len(path.parts) == 1
    if is_word and path.name.lower() in packaged:
        return RECIPES / f"{packaged[path.name.lower()]}.yaml"
    if path.is_file():
        return path
    if is_word:
        raise ValueError(
            f"recipe: got {str(path)!r}, expected one of {', '.join(packaged.values())}, or the path of a YAML file; "
            "correct the name."
        )
    raise FileNotFoundError(
        f"recipe: there is no file {str(path)!r}; give the path of a YAML file, or the name of a recipe of the "
        "package without a suffix, such as E6."
    )

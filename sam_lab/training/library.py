"""The recipes of the package, by name. Nothing here is slow to import."""

import re
from pathlib import Path

RECIPES = Path(__file__).parent / "recipes"


def _recipe_files() -> list[Path]:
    """The package's recipes, E2 before E10."""

    def in_order(file: Path) -> list[str | int]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.stem)]

    return sorted(RECIPES.glob("*.yaml"), key=in_order)


def recipe_names() -> dict[str, str]:
    """The package's recipes: the first comment line of each by its name, E2 before E10."""
    return {
        file.stem: file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for file in _recipe_files()
    }


def find_recipe(recipe: str | Path) -> Path:
    """The file of a recipe.

    Args:
        recipe (`str` or `Path`): The path of a YAML file, or a word without a suffix: the name of one of the package's
            recipes in any case, or else a file.

    Raises:
        ValueError: An unknown name.
        FileNotFoundError: No such file.
    """
    path, packaged = Path(recipe), {file.stem.lower(): file for file in _recipe_files()}
    is_word = not path.suffix and len(path.parts) == 1
    if is_word and path.name.lower() in packaged:
        return packaged[path.name.lower()]
    if path.is_file():
        return path
    if is_word:
        names = ", ".join(file.stem for file in packaged.values())
        raise ValueError(
            f"recipe: got {str(path)!r}, expected one of {names}, or the path of a YAML file; correct the name."
        )
    raise FileNotFoundError(
        f"recipe: there is no file {str(path)!r}; give the path of a YAML file, or the name of a recipe of the "
        "package without a suffix, such as E6."
    )

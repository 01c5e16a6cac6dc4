"""Which modules of the package import which."""

import ast
from functools import cache
from pathlib import Path

import posefoundry

PACKAGE = Path(posefoundry.__file__).parent


@cache
def imported_by(file: Path) -> frozenset[Path]:
    """Returns the modules of posefoundry that a file imports, in functions as well; not those for its types alone."""
    found: set[Path | None] = set()
    due: list[ast.AST] = [ast.parse(file.read_text())]
    while due:
        node = due.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            due += node.orelse
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: an import that says where from"
            module = node.module or ""
            found |= {file_of(f"{module}.{alias.name}") or file_of(module) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {file_of(alias.name) for alias in node.names}
        due += ast.iter_child_nodes(node)
    return frozenset(path for path in found if path)


def file_of(module: str) -> Path | None:
    if module.split(".")[0] != "posefoundry":
        return None
    path = PACKAGE.parent.joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def is_part_of(name: str, parts: set[str]) -> bool:
    return any(name == part or name.startswith(f"{part}/") for part in parts)

"""The rules of the house: sizes, a light import, exact public names, and nothing of anyone's machine."""

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import palate
from palate import errors

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("src", "tests") for path in (ROOT / folder).rglob("*.py"))
PACKAGES = sorted(
    ".".join(path.parent.relative_to(ROOT / "src").parts) for path in ROOT.glob("src/palate/**/__init__.py")
)
Function = ast.FunctionDef | ast.AsyncFunctionDef

by_file = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, Function))


def parameters(function: Function) -> list[str]:
    args = function.args
    every = [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg]
    return [arg.arg for arg in every if arg is not None and arg.arg not in ("self", "cls")]


@by_file
def test_a_file_and_its_functions_are_short(path):
    assert len(path.read_text("utf-8").splitlines()) <= 600
    assert [f.name for f in functions(path) if (f.end_lineno or 0) - f.lineno + 1 > 100] == []


@by_file
def test_functions_take_at_most_eight_parameters(path):
    if "cli" in path.parts:  # a command has a parameter for each option
        return
    assert [f.name for f in functions(path) if len(parameters(f)) > 8] == []


def loaded_by(code: str) -> list[str]:
    """Names of the heavy packages that `code` leaves imported in a fresh interpreter."""
    heavy = {"torch", "transformers", "datasets", "pyarrow", "pandas", "matplotlib", "sqlalchemy", "scipy"}
    probe = f"import sys\n{code}\nprint('loaded:', *sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1].split()[1:]


def test_the_probe_sees_a_heavy_import():
    assert "scipy" in loaded_by("import scipy")


def test_import_palate_is_light():
    assert loaded_by("import palate") == []


def test_help_is_light():
    call = "sys.argv = ['palate', '--help']\ntry: main()\nexcept SystemExit: pass"
    assert loaded_by(f"from palate.cli import main\n{call}") == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_in_all_exists_once(package):
    module = importlib.import_module(package)
    names = list(getattr(module, "__all__", []))
    assert [name for name in names if not hasattr(module, name)] == []
    assert len(names) == len(set(names))


def test_palate_hides_no_public_name():
    public = {n for n, v in vars(palate).items() if not n.startswith("_") and not isinstance(v, ModuleType)}
    assert public == {name for name in palate.__all__ if not name.startswith("__")}


def drawn_tree() -> set[tuple[str, str]]:
    """(parent, child) of each branch drawn in the docstring of palate.errors."""
    edges, above = set(), {}
    for branch in re.finditer(r"^([ │├└─]*)([A-Z]\w*Error)\b", errors.__doc__ or "", re.MULTILINE):
        depth, name = len(branch[1]) // 4, branch[2]
        above[depth] = name
        if depth:
            edges.add((above[depth - 1], name))
    return edges


def test_the_tree_of_errors_is_drawn_as_it_is():
    below = [c for c in vars(errors).values() if isinstance(c, type) and c is not errors.PalateError]
    assert drawn_tree() == {(base.__name__, c.__name__) for c in below for base in c.__bases__}


def test_the_installed_version_is_the_package_s():
    assert importlib.metadata.version("palate") == palate.__version__


def texts() -> Iterator[tuple[Path, str]]:
    """Every text file of the repository, outside what tools make."""
    folders = ("src", "tests", "docs", "scripts", ".ci")
    for path in [*ROOT.glob("*"), *(path for folder in folders for path in (ROOT / folder).rglob("*"))]:
        if path.is_file() and "__pycache__" not in path.parts:
            try:
                yield path, path.read_text("utf-8")
            except UnicodeDecodeError:
                continue  # an image, an archive


# Written so that the patterns do not find themselves.
FOREIGN = re.compile(
    r"(?<![\w.~}])/(?:work|farm|root|home|Users|tmp|opt)/\w+"
    r"|index-ur[l]|--registr[y]|find-link[s]|pythonhoste[d]"
)


def test_no_path_of_a_machine_and_no_registry_host():
    assert [(path.name, found[0]) for path, text in texts() for found in FOREIGN.finditer(text)] == []

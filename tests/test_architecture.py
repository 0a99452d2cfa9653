import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import btcompress

PACKAGE = Path(btcompress.__file__).parent

#: Rooms by floor; imports go only to a lower floor, or stay within a room.
FLOORS = {
    "errors": 0,
    "lazy": 0,
    "kinds": 1,
    "files": 1,
    "memory": 1,
    "devices": 1,
    "seeds": 1,
    "shapes": 1,
    "text": 0,
    "wording": 1,
    "modes": 2,
    "packing": 1,
    "timings": 0,
    "results": 1,
    "contraction": 1,
    "dialects": 2,
    "blockterm": 2,
    "fit": 3,
    "checkpoint": 3,
    "orders": 4,
    "yardsticks": 4,
    "nn": 4,
    "pricing": 5,
    "plan": 6,
    "factorization": 7,
    "applied": 6,
    "models": 7,
    "reporting": 7,
    "recipe": 10,
    "compression": 11,
    "page": 11,
    "running": 12,
    "demo": 12,
    "export": 8,
    "hub": 9,
    "benching": 9,
    "finetune": 8,
    "calibration": 9,
    "display": 13,
    "cli": 14,
    "__main__": 15,
    "recorder": 9,
    "tuning": 10,
}

MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)


def room_of(module):
    return module.split(".")[1]


def imports(module, *, also_for_types=False):
    """The btcompress modules that a module imports when it runs."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    tree = ast.parse(source)
    if not also_for_types:
        tree.body = [
            node
            for node in tree.body
            if not (isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING")
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            if node.module == "btcompress":
                yield from (f"btcompress.{alias.name}" for alias in node.names if alias.name != "__version__")
            elif node.module and node.module.startswith("btcompress."):
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("btcompress"))


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports(module):
    importlib.import_module(module)


def test_every_room_has_a_floor():
    assert {room_of(module) for module in MODULES if "." in module} == set(FLOORS)


@pytest.mark.parametrize("module", [module for module in MODULES if "." in module])
def test_imports_only_go_down_the_floors(module):
    for imported in imports(module):
        same_room = room_of(imported) == room_of(module)
        assert same_room or FLOORS[room_of(imported)] < FLOORS[room_of(module)], f"{module} imports {imported}"


def test_public_names_all_load_and_are_all_listed():
    for name in btcompress.__all__:
        assert getattr(btcompress, name) is not None
    assert set(btcompress._HOMES) == set(btcompress.__all__)
    with pytest.raises(AttributeError):
        _ = btcompress.nothing_of_this_name


def test_only_display_prints_and_only_the_command_line_exits():
    for module in MODULES:
        path = PACKAGE.parent.joinpath(*module.split("."))
        tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())
        calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert "print" not in calls, module
        assert module == "btcompress.cli" or "sys.exit" not in calls, module
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), module


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["factorize", "--help"],
        ["finetune", "--help"],
        ["bench", "--help"],
        ["export", "--help"],
        ["--version"],
    ],
    ids=" ".join,
)
def test_help_does_not_import_torch(arguments):
    script = (
        "import sys; from btcompress.cli import app\n"
        f"try: app({arguments})\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def test_every_test_that_the_page_on_reliability_names_is_there():
    tests = {path.name: path.read_text() for path in Path(__file__).parent.glob("test_*.py")}
    page = (PACKAGE.parent / "docs" / "reliability.md").read_text()
    latest, names = "", re.findall(r"`(?:(test_\w+\.py)|…)(?:::(test_\w+))?`", page)
    assert len(names) > 30
    for file, name in names:
        latest = file or latest
        assert latest in tests, latest
        assert f"def {name}(" in tests[latest] or not name, f"{latest}::{name}"

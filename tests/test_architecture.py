"""Which room may import which (docs/architecture.md), and that pip's half needs torch and numpy only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the ground up. A module belongs to the longest name that begins its own, and may import from its own floor or a
# lower one.
FLOORS = (
    ("ln.norms",),
    ("ln.reference",),
    ("ln.kernels",),
    ("ln.checks", "ln.inputs"),
    ("ln.averages",),
    ("ln.parameters",),
    ("ln.rnn", "ln.cells", "ln.fast_weights"),
    ("ln.convert",),
    ("ln",),
    ("ln.suite.errors",),
    ("ln.suite.files", "ln.suite.until"),
    ("ln.suite.config", "ln.suite.optimizers", "ln.suite.data"),
    ("ln.suite.overrides",),
    ("ln.suite.task",),
    ("ln.suite.runs",),
    ("ln.train",),
    ("ln.suite.judging",),
    ("ln.suite.showing",),
    ("ln.suite.sweeps",),
    ("ln.suite",),
    ("experiments", "examples"),
    ("scripts",),
)
TOPS = ("ln", "experiments", "examples", "scripts")
HEIGHT = {room: height for height, floor in enumerate(FLOORS) for room in floor}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for top in TOPS for path in (ROOT / top).rglob("*.py")}


def imports(module: str) -> set[str]:
    """The modules of ours that a module imports, inside functions and for types too."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & FILES.keys()


def room_of(module: str) -> str:
    return max((room for room in HEIGHT if f"{module}.".startswith(f"{room}.")), key=len)


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_point_down(module: str) -> None:
    height = HEIGHT[room_of(module)]
    package = {module.rpartition(".")[0], "ln"}  # `from ln import kernels` names the package, too
    above = {other for other in imports(module) - package if HEIGHT[room_of(other)] > height}
    assert not above, f"{module} imports {', '.join(sorted(above))} from above"


def test_no_circle() -> None:
    """By modules, where a package stands for its __init__ only."""
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            raise AssertionError(" -> ".join([*path[path.index(module) :], module]))
        if module in done:
            return
        for other in imports(module):
            if not module.startswith(f"{other}."):  # a module's own package has begun to be imported
                visit(other, (*path, module))
        done.add(module)

    for module in FILES:
        visit(module, ())


def test_the_library_needs_torch_and_numpy_only() -> None:
    """Whatever `import ln` and a step of a layer load beyond torch and numpy is ln's own, and none of it the suite."""
    code = """
import sys
import torch, numpy
from torch import nn
nn.LSTM(2, 2)(torch.randn(1, 1, 2))[0].sum().backward()
before = {name.partition(".")[0] for name in sys.modules}
import ln
ln.LSTM(2, 2)(torch.randn(1, 1, 2))[0].sum().backward()
new = {name.partition(".")[0] for name in sys.modules} - before - set(sys.stdlib_module_names)
print(sorted(new), any(name.startswith("ln.suite") for name in sys.modules))
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "['ln'] False"


def test_examples_are_of_the_library_alone() -> None:
    """What a user copies needs torch and `ln` only."""
    for module in FILES:
        if module.startswith("examples."):
            assert not [other for other in imports(module) if other.startswith(("ln.suite", "experiments", "scripts"))]

"""The examples in the docstrings of what `ln` offers: each name has one, and it runs and says what it says."""

import doctest
import inspect
from typing import Any

import pytest

import ln

# FastState is what FastWeights returns; its example is there.
NAMES = [name for name in ln.__all__ if name != "FastState"]


@pytest.mark.parametrize("name", NAMES)
def test_each_public_name_has_an_example_that_runs(name: str) -> None:
    offered: Any = getattr(ln, name)
    module = inspect.getmodule(offered)
    assert module is not None
    within = vars(module)
    found = doctest.DocTestFinder().find(offered, name, globs=dict(within))
    examples = [test for test in found if test.examples]
    assert examples, f"ln.{name} has no example"
    for test in examples:
        assert not doctest.DocTestRunner().run(test).failed

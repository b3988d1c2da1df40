"""Expressions of sizes as data."""

import json

import pytest
import sympy
from torch.utils._sympy.functions import FloorDiv, Max, Mod

from torch_max_backend.size_trees import evaluate, to_tree, tree_function

n, m = sympy.symbols("n m", integer=True, positive=True)
EXPRESSIONS = {
    "symbol": (n, 5),
    "sum": (n + m + 2, 14),
    "product": (3 * n * m, 105),
    "power": (n**2, 25),
    "division": (FloorDiv(n, 2), 2),
    "remainder": (Mod(m, 4), 3),
    "larger": (Max(n, m), 7),
    "nested": (FloorDiv(n * 4 + 2, m) + 1, 4),
    "condition": (sympy.Eq(n, 5), True),
    "conjunction": (sympy.And(n > 2, m <= 7), True),
    "constant": (sympy.Integer(4), 4),
    "fraction": (sympy.Rational(1, 2), 0.5),
    "number": (2.5, 2.5),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_the_same_value_after_a_file(name):
    expr, value = EXPRESSIONS[name]
    tree = json.loads(json.dumps(to_tree(expr)))
    assert evaluate(tree, {"n": 5, "m": 7}) == value
    assert tree_function(tree, ["m", "n"])(7, 5) == value


def test_a_function_that_has_no_place_in_a_file():
    with pytest.raises(ValueError, match="gamma"):
        to_tree(sympy.gamma(n))


@pytest.mark.parametrize(
    "tree", [["__import__", "os"], [["Add"], 1], [], ["Add", "k"], "k"], ids=str
)
def test_what_a_file_may_not_say(tree):
    with pytest.raises(ValueError):
        evaluate(tree, {"n": 1})

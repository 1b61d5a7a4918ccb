"""The mutation tester: every kind of mutant is Python, another program, and one line away; its seed decides."""

import ast
import sys
from collections import defaultdict
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "tools"))
from mutants import Mutant, Source, sample

TEXT = '''"""The docstring of a module."""
from typing import TYPE_CHECKING
LIMIT: int = 3
def paint(words: str, size: int = 8, *, rate=0.5, device=None) -> "list":
    if size < LIMIT and not words:
        raise ValueError("the words are " + "missing")
    for key, value in {"steps": 20, "eta": 0.0}.items():
        make.table[key] = value if key else rate * size
    make.show(words, size, quick=True)
    return [f"{word!r:>{3}} is {len('it')}" for word in words.split(", ")[1:size] if word]
'''


@pytest.fixture(scope="module")
def mutants() -> dict[tuple[str, str], list[Mutant]]:
    """All sound mutants of TEXT by their kind and what they write."""
    found = defaultdict(list)
    for mutant in sample([Source("paint.py", TEXT)], 10**6, 0):
        found[mutant.kind, mutant.new].append(mutant)
    return found


def test_each_mutant_is_another_program_that_differs_in_one_line(mutants) -> None:
    every = [mutant for some in mutants.values() for mutant in some]
    kinds = {
        "compare", "arithmetic", "and, or", "not", "bool", "int", "float", "string", "default", "keyword", "swap",
        "return", "if", "statement", "assignment", "conditional", "element", "slice",
    }  # fmt: skip
    assert {mutant.kind for mutant in every} == kinds
    trees = {ast.dump(ast.parse(mutant.text(TEXT))) for mutant in every}
    assert len(trees) == len(every) and ast.dump(ast.parse(TEXT)) not in trees
    for mutant in every:
        differ = [
            n for n, (a, b) in enumerate(zip(*map(str.splitlines, (TEXT, mutant.text(TEXT))), strict=True), 1) if a != b
        ]
        assert differ == [mutant.line], mutant
    assert not {1, 2, 6} & {mutant.line for mutant in every}  # the docstring, the import, the message


def test_mutants_by_hand(mutants) -> None:
    def after(kind: str, new: str) -> list[str]:
        return [mutant.diff(TEXT)[1] for mutant in mutants[kind, new]]

    assert after("compare", "<=") == ["if size <= LIMIT and not words:"]
    assert after("and, or", "or") == ["if size < LIMIT or not words:"]
    assert after("not", "") == ["if size < LIMIT and words:"]
    assert after("if", "False")[0] == "if False:" and after("if", "False")[1].endswith("[1:size] if False]")
    assert after("int", "4") == ["LIMIT: int = 4"]
    assert after("element", "") == [
        'for key, value in {"eta": 0.0}.items():', 'for key, value in {"steps": 20}.items():',
    ]  # fmt: skip
    assert after("float", "1.0") == ['for key, value in {"steps": 20, "eta": 1.0}.items():']
    assert after("string", '"eta_"') == ['for key, value in {"steps": 20, "eta_": 0.0}.items():']
    assert after("default", "9") == ['def paint(words: str, size: int = 9, *, rate=0.5, device=None) -> "list":']
    assert after("default", "0") == ['def paint(words: str, size: int = 8, *, rate=0.5, device=0) -> "list":']
    assert after("conditional", "rate * size") == ["make.table[key] = rate * size"]
    assert after("arithmetic", "/") == ["make.table[key] = value if key else rate / size"]
    assert after("assignment", "pass") == after("statement", "pass") == ["pass"]
    assert after("swap", "size, words") == ["make.show(size, words, quick=True)"]
    assert after("keyword", "") == ["make.show(words, size)"]
    assert after("bool", "False") == ["make.show(words, size, quick=False)"]
    assert after("return", "None") == ["return None"]
    assert [text.partition("split")[2] for text in after("slice", "(size) + 1")] == ['(", ")[1:(size) + 1] if word]']


def test_what_spans_lines_keeps_their_number() -> None:
    text = "def f():\n    g(\n        1,\n        k=2,\n    )\n    return (\n        3\n    )\n"
    every = sample([Source("f.py", text)], 100, 0)
    assert {(m.kind, m.line, *m.diff(text)) for m in every if m.kind in ("statement", "keyword", "return")} == {
        ("statement", 2, "g( 1, k=2, )", "pass"), ("keyword", 3, "1, k=2,", "1 ,"), ("return", 7, "3", "None"),
    }  # fmt: skip


def test_the_tests_of_a_constant_are_those_of_the_functions_that_use_it(mutants) -> None:
    (constant,) = mutants["int", "4"]
    assert constant.lines == set(range(5, 11))
    (call,) = mutants["keyword", ""]
    assert call.lines == {9}


def test_the_seed_decides_and_kinds_take_turns() -> None:
    sources = [
        Source("one.py", TEXT),
        Source("two.py", TEXT + TEXT.replace("paint", "draw").partition("TYPE_CHECKING\n")[2]),
    ]
    once, again, other = (sample(sources, 30, seed) for seed in (1, 1, 2))
    assert once == again != other
    assert [sum(mutant.file == source.file for mutant in once) for source in sources] == [10, 20]
    assert len({mutant.kind for mutant in once if mutant.file == "two.py"}) == 18

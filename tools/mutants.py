"""Seeded mutation testing of the files that wire limner together: which small faults would no test notice?

python tools/mutants.py                                       # 200 mutants of FILES, half an hour on two cores
python tools/mutants.py "src/limner/noise/*.py" --count 40    # of other files
python tools/mutants.py --only src/limner/pipeline.py:150     # every mutant of one line
"""

import argparse
import ast
import compileall
import fcntl
import gc
import glob
import hashlib
import importlib
import inspect
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
FILES = """src/limner/pipeline.py src/limner/model.py src/limner/record.py src/limner/denoise.py
src/limner/text/conditioner.py src/limner/text/encoder.py src/limner/train/diffusion.py src/limner/train/contrastive.py
src/limner/train/setup.py src/limner/train/loss.py src/limner/train/loop.py src/limner/cli/generate.py""".split()
CACHE = ROOT / "out/mutants-coverage.json"
# Imported once, before the forks: what the tests need that is slow to import and is not limner.
HEAVY = """numpy scipy.ndimage scipy.optimize scipy.stats PIL.Image PIL.ImageDraw PIL.ImageFont torch torch.utils.data
torch.utils.tensorboard torch._dynamo accelerate datasets pyarrow.parquet diffusers transformers hypothesis einops
_hypothesis_pytestplugin safetensors.torch tokenizers huggingface_hub tyro rich.progress coverage psutil""".split()
SWAPS = {
    "Lt": ("<", "<="), "LtE": ("<=", "<"), "Gt": (">", ">="), "GtE": (">=", ">"), "Eq": ("==", "!="),
    "NotEq": ("!=", "=="), "Is": ("is", "is not"), "IsNot": (r"is\s+not", "is"), "In": ("in", "not in"),
    "NotIn": (r"not\s+in", "in"), "Add": (r"\+", "-"), "Sub": ("-", "+"), "Mult": (r"\*", "/"), "Div": ("/", "*"),
    "And": ("and", "or"), "Or": ("or", "and"),
}  # fmt: skip
PROSE = 4  # words: a string as long is said to people, not to code
SLOW_FIXTURE = 0.3  # seconds: tests that share such a fixture run one after another
MEMORY = 16 * 2**30  # bytes of address space a mutant may take
Change = tuple[str, int, int, str]  # its kind, the span of text that goes, and what comes instead


@dataclass(frozen=True)
class Mutant:
    """One change of one file; `lines` are those whose tests should notice it."""

    file: str
    line: int
    kind: str
    start: int
    end: int
    new: str
    lines: frozenset[int] = field(repr=False)

    def text(self, old: str) -> str:
        """The changed source, of as many lines as before."""
        kept = "\n" * (old[self.start : self.end].count("\n") - self.new.count("\n"))
        return old[: self.start] + self.new + kept + old[self.end :]

    def diff(self, old: str) -> tuple[str, str]:
        """The lines that change, before and after, in one line each."""
        pairs = zip(old.splitlines(), self.text(old).splitlines(), strict=True)
        before, after = zip(*((a.strip(), b.strip()) for a, b in pairs if a != b), strict=True)
        return " ".join(filter(None, before)), " ".join(filter(None, after))


class Source:
    """A file as text and as a tree, and where in the text each node is."""

    def __init__(self, file: str, text: str) -> None:
        self.file, self.text, self.tree = file, text, ast.parse(text)
        self.rows = text.splitlines(keepends=True)
        self.functions = [n for n in ast.walk(self.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]

    def span(self, node: Any) -> tuple[int, int]:
        """A node's offsets in the text; the tree counts bytes in lines."""
        places = (node.lineno - 1, node.col_offset), (node.end_lineno - 1, node.end_col_offset)
        start, end = (sum(map(len, self.rows[:n])) + len(self.rows[n].encode()[:c].decode()) for n, c in places)
        return start, end

    def of(self, node: Any) -> str:
        """A node's text."""
        return self.text[slice(*self.span(node))]

    def sound(self, mutant: Mutant) -> str | None:
        """The mutant's tree in words; None where it is no Python, or the same program."""
        try:
            tree = ast.dump(ast.parse(mutant.text(self.text)))
        except SyntaxError:
            return None
        return None if tree == ast.dump(self.tree) else tree

    def candidates(self) -> list[Mutant]:
        """All mutants of the file, and a few that are not `sound`."""
        return [
            Mutant(self.file, self.text.count("\n", 0, change[1]) + 1, *change, self._noticed(statement, function))
            for node, statement, function in self._walk(self.tree, self.tree, None)
            for change in changes(self, node)
        ]

    def _walk(self, node: Any, statement: Any, function: Any) -> Iterator[tuple]:
        """Each node with its statement and its function, without what people read and what never runs."""
        children = ast.iter_child_nodes(node)
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Raise() | ast.Assert() | ast.JoinedStr() | ast.arg():
                return
            case ast.Expr(value=ast.Constant()) | ast.If(test=ast.Name(id="TYPE_CHECKING")):
                return
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                return
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript()) if name[0].isupper() > name.isupper():
                return  # the alias of a type
            case ast.Assign(targets=[ast.Tuple()], value=ast.Tuple(elts=elements)):
                children = iter(elements)  # a tuple that is unpacked at once must keep its length
            case ast.AnnAssign():
                children = iter([node.target, *filter(None, [node.value])])
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                # Constants among the defaults are mutated with the function.
                children = (d for d in _defaults(node) if not isinstance(d, ast.Constant))
            case ast.ClassDef():
                children = iter(node.body)
        statement = node if isinstance(node, ast.stmt) else statement
        yield node, statement, function
        for child in children:
            yield from self._walk(child, statement, function)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for child in node.body:
                yield from self._walk(child, child, node)

    def _noticed(self, statement: Any, function: Any) -> frozenset[int]:
        """The statement's own lines; for what runs at import, the bodies of the functions that use its names."""
        if function is not None:
            body = getattr(statement, "body", None)
            last = max(statement.lineno, body[0].lineno - 1) if body else statement.end_lineno
            return frozenset(range(statement.lineno, last + 1))
        targets = getattr(statement, "targets", [getattr(statement, "target", statement)])
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        users = [
            f for f in self.functions
            if f is statement or names & {getattr(n, "id", getattr(n, "attr", None)) for n in ast.walk(f)}
        ]  # fmt: skip
        bodies = ((f.body[0].lineno, f.body[-1].end_lineno or 0) for f in users or self.functions)
        return frozenset(line for first, last in bodies for line in range(first, last + 1))


def changes(source: Source, node: Any) -> Iterator[Change]:
    """Every mutation of one node."""
    start, end = source.span(node) if hasattr(node, "lineno") else (0, 0)
    match node:
        case ast.Compare():
            for (left, right), operator in zip(pairwise([node.left, *node.comparators]), node.ops, strict=True):
                yield from _operator("compare", source, left, operator, right)
        case ast.BinOp() if not isinstance(getattr(node.right, "value", None), str):
            yield from _operator("arithmetic", source, node.left, node.op, node.right)
        case ast.BoolOp():
            for left, right in pairwise(node.values):
                yield from _operator("and, or", source, left, node.op, right)
        case ast.UnaryOp(op=ast.Not()):
            yield "not", start, start + len("not "), ""
        case ast.Constant():
            yield from _constant(source, node)
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            for default in _defaults(node):
                if isinstance(default, ast.Constant):
                    yield from (("default", *change[1:]) for change in _constant(source, default, none="0"))
        case ast.Call():
            parts, named = sorted(map(source.span, [*node.args, *node.keywords])), map(source.span, node.keywords)
            yield from (("keyword", *_cut(parts, part), "") for part in named)
            for a, b in pairwise(node.args):
                if not isinstance(a, ast.Starred) and not isinstance(b, ast.Starred):
                    (first, first_end), (second, last) = source.span(a), source.span(b)
                    yield "swap", first, last, source.of(b) + source.text[first_end:second] + source.of(a)
        case ast.Return(value=ast.expr() as value):
            yield "return", *source.span(value), "None"
        case ast.If() | ast.comprehension():
            for test in node.ifs if isinstance(node, ast.comprehension) else [node.test]:
                yield from (("if", *source.span(test), forced) for forced in ("True", "False"))
        case ast.Expr(value=ast.Call()):
            yield "statement", start, end, "pass"
        case ast.Assign() | ast.AnnAssign(value=ast.expr()) | ast.AugAssign():
            stored = [part for part in ast.walk(node) if isinstance(getattr(part, "ctx", None), ast.Store)]
            if isinstance(node, ast.AugAssign) or any(isinstance(s, ast.Attribute | ast.Subscript) for s in stored):
                yield "assignment", start, end, "pass"
        case ast.IfExp():
            yield from (("conditional", start, end, source.of(branch)) for branch in (node.body, node.orelse))
        case ast.Tuple(ctx=ast.Load(), elts=[a, b]):
            both = source.span(a)[0], source.span(b)[1]
            yield from (("element", *both, source.of(kept) + ",") for kept in (b, a))
        case ast.List(ctx=ast.Load()) | ast.Tuple(ctx=ast.Load()) | ast.Set():
            parts = [source.span(element) for element in node.elts]
            yield from (("element", *_cut(parts, part), "") for part in parts)
        case ast.Dict():
            values = [source.span(value) for value in node.values]
            starts = [source.span(k)[0] if k else v[0] - len("**") for k, v in zip(node.keys, values, strict=True)]
            parts = [(key, value[1]) for key, value in zip(starts, values, strict=True)]
            yield from (("element", *_cut(parts, part), "") for part in parts)
        case ast.Slice():
            colon = source.text.index(":", source.span(node.lower)[1] if node.lower else start)
            for bound, place, other in ((node.lower, start, "1"), (node.upper, colon + 1, "-1")):
                shifted = (*source.span(bound), f"({source.of(bound)}) + 1") if bound else (place, place, other)
                yield "slice", *shifted


def _defaults(function: Any) -> list[Any]:
    return [default for default in [*function.args.defaults, *function.args.kw_defaults] if default]


def _operator(kind: str, source: Source, left: ast.expr, operator: Any, right: ast.expr) -> Iterator[Change]:
    old, new = SWAPS.get(type(operator).__name__, (None, ""))
    if old and (there := re.compile(old).search(source.text, source.span(left)[1], source.span(right)[0])):
        yield kind, *there.span(), new


def _constant(source: Source, node: ast.Constant, none: str = "") -> Iterator[Change]:
    match node.value:
        case bool():
            yield "bool", *source.span(node), str(not node.value)
        case int():
            yield "int", *source.span(node), str(node.value + 1)
        case float():
            yield "float", *source.span(node), repr(node.value * 2 or 1.0)
        case str() if len(node.value.split()) < PROSE:
            yield "string", *source.span(node), re.sub(r"(\"{3}|'{3}|\"|')$", r"_\1", source.of(node))
        case None if none:
            yield "none", *source.span(node), none


def _cut(parts: list[tuple[int, int]], part: tuple[int, int]) -> tuple[int, int]:
    """What to delete of a list for one element: the comma behind it goes too, or that before the last."""
    i = parts.index(part)
    following = parts[i + 1 : i + 2]
    return (part[0], following[0][0]) if following else (parts[i - 1][1] if i else part[0], part[1])


def sample(sources: list[Source], count: int, seed: int) -> list[Mutant]:
    """`count` sound mutants, all different: over files in proportion to their candidates, over kinds in turn."""
    taken, before, found = [], 0, [source.candidates() for source in sources]
    total = max(1, sum(map(len, found)))
    for source, candidates in zip(sources, found, strict=True):
        quota = round(count * (before + len(candidates)) / total) - round(count * before / total)
        before += len(candidates)
        draw, nth, turns, seen = random.Random(f"{seed} {source.file}"), defaultdict(int), [], {None}
        for mutant in draw.sample(candidates, len(candidates)):
            nth[mutant.kind] += 1
            turns.append((nth[mutant.kind], mutant))
        for _, mutant in sorted(turns, key=lambda turn: turn[0]):
            if len(seen) <= quota and (tree := source.sound(mutant)) not in seen:
                seen.add(tree)
                taken.append(mutant)
    return sorted(taken, key=lambda m: (m.file, m.start, m.end, m.new))


class Watch:
    """A pytest plugin: which tests run in which order, their seconds and their ends, and the lines each executes."""

    def __init__(self, order: list[str] | None, known: set[str], coverage: Any) -> None:
        self.order, self.known, self.coverage, self.context = order, known, coverage, ""
        self.tests: dict[str, dict] = {}
        self.fixtures: dict[str, float] = defaultdict(float)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """The tests asked for, in their order; before them any whose very name the mutant made."""
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
        if self.order is not None:
            place = {name: i for i, name in enumerate(self.order)}
            items[:] = [item for item in items if item.nodeid in place or item.nodeid not in self.known]
            items.sort(key=lambda item: place.get(item.nodeid, -1))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        """One test, as a context of coverage."""
        shared = [each[-1] for each in item._fixtureinfo.name2fixturedefs.values() if each[-1].scope != "function"]
        self.tests[item.nodeid] = {"outcome": "passed", "reason": "", "seconds": 0.0, "fixtures": [*map(_name, shared)]}
        self._switch(item.nodeid)
        with open(CACHE.with_suffix(".lock"), "w") as lock:
            if "-port" in inspect.getsource(item.function):
                fcntl.flock(lock, fcntl.LOCK_EX)  # two mutants at once must not open the same network port
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        """A fixture that tests share: what it executes counts for all of them, its seconds for none."""
        if fixturedef.scope == "function":
            return (yield)
        test, start = self.context, time.perf_counter()
        self._switch(_name(fixturedef))
        try:
            return (yield)
        finally:
            self._switch(test)
            seconds = time.perf_counter() - start
            self.fixtures[_name(fixturedef)] += seconds
            self.tests.get(test, {"seconds": 0.0})["seconds"] -= seconds

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up the phases of a test."""
        test = self.tests[report.nodeid]
        test["seconds"] += report.duration
        if report.outcome != "passed" and test["outcome"] != "failed":
            crash = getattr(getattr(report.longrepr, "reprcrash", None), "message", str(report.longrepr))
            test |= {"outcome": report.outcome, "reason": crash.strip().partition("\n")[0][:200]}

    def _switch(self, context: str) -> None:
        self.context = context
        if self.coverage is not None:
            self.coverage.switch_context(context)
            self.coverage.config.context = context  # for forks and, through the environment, for programs
            os.environ["COVERAGE_PROCESS_CONFIG"] = self.coverage.config.serialize()


def _name(fixture: Any) -> str:
    return f"fixture {fixture.baseid}::{fixture.argname}"


@dataclass
class Task:
    """One run of pytest on a copy of src: of test files, or of tests in an order, perhaps with a file changed."""

    files: list[str]
    order: list[str] | None = None
    known: set[str] = field(default_factory=set)
    changed: tuple[str, str] | None = None
    measured: list[str] = field(default_factory=list)
    timeout: float = 1800.0
    result: dict = field(default_factory=dict)


def _child(task: Task, work: Path) -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    log = os.open(work / "log.txt", os.O_WRONLY | os.O_CREAT)
    for stream, to in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
        os.dup2(to, stream)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    home, coverage = str(work / "src"), None
    sys.path.insert(0, home)
    os.environ |= {"PYTHONPATH": home, "HYPOTHESIS_STORAGE_DIRECTORY": str(work / "hypothesis")}
    if task.measured:
        from coverage import Coverage

        coverage = Coverage(str(work / "lines"), include=[str(work / f) for f in task.measured], config_file=False)
        for option, value in (("patch", ["fork", "_exit"]), ("core", "ctrace"), ("parallel", True)):
            coverage.set_option(f"run:{option}", value)
        coverage.start()
    watch = Watch(task.order, task.known, coverage)
    options = ["-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--basetemp", str(work / "tmp")]
    code = int(pytest.main([*task.files, *options, *(["-x"] if task.changed else [])], plugins=[watch]))
    if coverage:
        coverage.stop()
        coverage.save()
    limner = sys.modules.get("limner")
    own = limner is None or str(limner.__file__).startswith(home)
    told = {"code": code if own else "another limner", "tests": watch.tests, "fixtures": watch.fixtures}
    (work / "told.json").write_text(json.dumps(told))


def run(tasks: list[Task], jobs: int, src: Path) -> Iterator[tuple[Task, dict, float]]:
    """Fork a child for each task, `jobs` at a time; yields what it told, and its seconds."""
    import psutil

    waiting, running = tasks[::-1], {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task, folder = waiting.pop(), TemporaryDirectory(prefix="mutant-", ignore_cleanup_errors=True)
                shutil.copytree(src, Path(folder.name, "src"))
                if task.changed:
                    path = Path(folder.name, task.changed[0])
                    path.write_text(task.changed[1])
                    for stale in path.parent.glob(f"__pycache__/{path.stem}.*"):
                        stale.unlink()
                if not (pid := os.fork()):
                    try:
                        _child(task, Path(folder.name))
                    finally:
                        os._exit(0)
                running[pid] = task, folder, time.monotonic()
            for pid, (task, folder, start) in list(running.items()):
                seconds, ended = time.monotonic() - start, os.waitpid(pid, os.WNOHANG)[0]
                if ended or seconds > task.timeout:
                    _end(pid, [] if ended else psutil.Process(pid).children(recursive=True))
                    del running[pid]
                    yield task, _told(Path(folder.name)) if ended else {"code": "timeout", "tests": {}}, seconds
                    folder.cleanup()
            time.sleep(0.02)
    finally:
        for pid in running:
            _end(pid, psutil.Process(pid).children(recursive=True))


def _end(pid: int, family: list) -> None:
    """Kill a child's process group, and those of its family that have left the group."""
    for kill in (lambda: os.killpg(pid, signal.SIGKILL), *(process.kill for process in family)):
        with suppress(Exception):
            kill()
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _told(work: Path) -> dict:
    told = {"code": "died", "tests": {}}
    with suppress(FileNotFoundError):
        told = json.loads((work / "told.json").read_text())
    lines: dict[tuple[str, str], set[int]] = defaultdict(set)
    for path in work.glob("lines*"):
        from coverage import CoverageData

        data = CoverageData(str(path))
        data.read()
        for file in data.measured_files():
            for line, contexts in data.contexts_by_lineno(file).items():
                for context in contexts:
                    lines[context, os.path.relpath(file, work)].add(line)
    for name, test in told["tests"].items():
        test["lines"] = defaultdict(list)
        for (context, file), some in lines.items():
            if context == name or context in test["fixtures"]:
                test["lines"][file] += sorted(some)
    return told


def measure(files: list[str], jobs: int, src: Path, say: Callable) -> tuple[dict, dict, dict]:
    """The cache, its tests with their lines and seconds, its fixtures' seconds; only what changed runs again."""
    shared = [path for path in ROOT.glob("tests/**/*.py") if not path.name.startswith("test_")]
    base = _digest(sorted([*src.rglob("*.py"), *shared], key=lambda path: path.name), *files)
    cache = json.loads(CACHE.read_text()) if CACHE.is_file() else {}
    cache = cache if cache.get("base") == base else {"base": base, "files": {}}
    digests = {str(path.relative_to(ROOT)): _digest([path]) for path in sorted(ROOT.glob("tests/**/test_*.py"))}
    known = cache["files"] = {f: told for f, told in cache["files"].items() if told["digest"] == digests.get(f)}
    new = sorted(digests.keys() - known, key=lambda f: -(ROOT / f).stat().st_size)
    for task, told, seconds in run([Task([file], measured=files) for file in new], jobs, src):
        say(f"{seconds:6.1f} s  {task.files[0]}: {len(told['tests'])} tests, pytest ended with {told['code']}")
        if "fixtures" in told:  # it came to its end
            known[task.files[0]] = told | {"digest": digests[task.files[0]]}
            _write(CACHE, cache)
    return cache, *({k: v for told in known.values() for k, v in told[part].items()} for part in ("tests", "fixtures"))


def _digest(paths: list[Path], *more: str) -> str:
    return hashlib.sha256(b"\0".join([*map(Path.read_bytes, paths), *map(str.encode, more)])).hexdigest()


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(json.dumps(content, indent=1))
    path.with_suffix(".part").replace(path)


def covering(mutant: Mutant, tests: dict, fixtures: dict) -> list[str]:
    """The passing tests that execute the mutant's lines, the cheapest first; users of a slow fixture stay together."""
    blocks: dict[tuple, list[str]] = defaultdict(list)
    for name, test in tests.items():
        if test["outcome"] == "passed" and not mutant.lines.isdisjoint(test["lines"].get(mutant.file, ())):
            blocks[tuple(f for f in test["fixtures"] if fixtures.get(f, 0.0) > SLOW_FIXTURE) or (name,)].append(name)

    def cost(block: tuple) -> float:
        whole = sum(fixtures.get(f, 0.0) for f in block) + sum(tests[name]["seconds"] for name in blocks[block])
        return whole / len(blocks[block])

    return [name for block in sorted(blocks, key=lambda b: (cost(b), b)) for name in blocks[block]]


def _affordable(names: list[str], tests: dict, budget: float) -> list[str]:
    """The first of the tests, and those that fit into the seconds with those before them."""
    fit, left = names[:1], budget - sum(tests[name]["seconds"] for name in names[:1])
    for name in names[1:]:
        if tests[name]["seconds"] <= left:
            fit.append(name)
            left -= tests[name]["seconds"]
    return fit


def _task(order: list[str], tests: dict, **more: Any) -> Task:
    files = {name.partition("::")[0] for name in order}
    return Task(sorted(files), order, {name for name in tests if name.partition("::")[0] in files}, **more)


def check(names: list[str], cache: dict, tests: dict, jobs: int, src: Path, say: Callable) -> list[str]:
    """Those of the tests that fail without a mutant; each runs once, the cache remembers."""
    waiting = [name for name in names if "checked" not in tests[name]]
    tasks = [_task(waiting[i::jobs], tests) for i in range(jobs) if waiting[i:]]
    for task, told, seconds in run(tasks, jobs, src):
        say(f"{seconds:6.1f} s  {len(task.order or ())} tests without a mutant, pytest ended with {told['code']}")
        for name in task.order or ():
            end = told["tests"].get(name, {"outcome": "failed", "reason": "did not run", "seconds": 0.0})
            tests[name] |= {key: end[key] for key in ("outcome", "reason", "seconds")} | {"checked": True}
        _write(CACHE, cache)
    return [name for name in names if tests[name]["outcome"] == "failed"]


def judge(mutants: list[Mutant], sources: dict[str, Source], args: Any, src: Path, say: Callable) -> dict:
    """Everything that is to be known of these mutants."""
    cache, tests, fixtures = measure(sorted({*FILES, *sources}), args.jobs, src, say)

    covers = [covering(mutant, tests, fixtures) for mutant in mutants]
    chosen = [_affordable(names, tests, args.timeout / 2) for names in covers]
    used = sorted({name for names in chosen for name in names}, key=lambda name: tests[name]["seconds"])
    red = check(used, cache, tests, args.jobs, src, say)
    for name in red:
        say(f"left out, for it fails without a mutant: {name}: {tests[name]['reason']}")
    results, tasks = [], []
    for mutant, covered, names in zip(mutants, covers, chosen, strict=True):
        order = [name for name in names if name not in red]
        result = {"file": mutant.file, "line": mutant.line, "kind": mutant.kind, "end": "survived", "by": ""}
        result |= {"diff": mutant.diff(sources[mutant.file].text), "seconds": 0.0}
        results.append(result | {"covering": len(covered), "run": len(order)})
        if order:
            changed = mutant.file, mutant.text(sources[mutant.file].text)
            limit = max(args.timeout, 4 * sum(tests[name]["seconds"] for name in order))
            tasks.append(_task(order, tests, changed=changed, timeout=limit, result=results[-1]))
    for i, (task, told, seconds) in enumerate(run(tasks, args.jobs, src), start=1):
        assert told["code"] != "another limner", "a child imported another limner than its own"
        end = {0: "survived", 5: "survived", "timeout": "timeout"}.get(told["code"], "killed")
        failed = [f"{name}: {test['reason']}" for name, test in told["tests"].items() if test["outcome"] == "failed"]
        by = "" if end == "survived" else (failed or [f"pytest ended with {told['code']}"])[0]
        task.result |= {"end": end, "seconds": round(seconds, 2), "by": by}
        say(f"{i:4} of {len(tasks)}  {end:8}  {seconds:5.1f} s  {_title(task.result)}  {by[:150]}")
    return {"seed": args.seed, "files": list(sources), "left_out": red, "mutants": results}


def _title(mutant: dict) -> str:
    return "{file}:{line}  {kind}".format(**mutant)


def _show(console: Console, mutant: dict, more: str = "") -> None:
    console.print(f"\n{_title(mutant)}{more}\n  - {mutant['diff'][0]}\n  + {mutant['diff'][1]}")


def _table(console: Console, report: dict) -> None:
    table = Table("file", "mutants", "killed", "timeouts", "survived", "no test")
    for file in [*report["files"], "all"]:
        mine = [m for m in report["mutants"] if file in (m["file"], "all")]
        ends = [sum(m["end"] == end for m in mine) for end in ("killed", "timeout", "survived")]
        table.add_row(file, *map(str, [len(mine), *ends, sum(not m["covering"] for m in mine)]))
    for m in (m for m in report["mutants"] if m["end"] == "survived"):
        _show(console, m, f", {m['run']} of {m['covering']} tests, {m['seconds']:.0f} s")
    console.print(table)


def main() -> None:
    """Sample, see which tests execute what, run the tests that are to judge without a mutant, then each mutant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=FILES, help="files or patterns (default: the wiring files)")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "out/mutants.json")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for a mutant; its tests fill half of them")
    parser.add_argument("--only", metavar="FILE:LINE", default="", help="all mutants of this line")
    parser.add_argument("--list", action="store_true", help="show the sample and stop")
    args = parser.parse_args()
    os.chdir(ROOT)
    CACHE.parent.mkdir(exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the children would live on
    only, _, line = args.only.rpartition(":")
    sources: dict[str, Source] = {}
    for pattern in [only] if only else args.files:
        paths = sorted(glob.glob(pattern, recursive=True)) or parser.error(f"no such file: {pattern}")
        sources |= {name: Source(name, Path(name).read_text()) for name in map(os.path.relpath, paths)}
    mutants = sample(list(sources.values()), 10**6 if only else args.count, args.seed)
    mutants = [mutant for mutant in mutants if not only or mutant.line == int(line)]
    console = Console(width=120, highlight=False, markup=False, emoji=False, soft_wrap=True)
    if args.list:
        for m in mutants:
            _show(console, {"file": m.file, "line": m.line, "kind": m.kind, "diff": m.diff(sources[m.file].text)})
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a fork has none of its parent's threads
    for name in HEAVY:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    assert "limner" not in sys.modules
    sys.dont_write_bytecode = False  # compiled tests, with their assertions rewritten, serve every child
    gc.freeze()
    with TemporaryDirectory() as folder:
        src = shutil.copytree("src", Path(folder, "src"))  # as it is now, whatever happens to it meanwhile
        compileall.compile_dir(src, quiet=1)
        report = judge(mutants, sources, args, src, console.print)
    _write(args.output, report)
    _table(console, report)


if __name__ == "__main__":
    main()

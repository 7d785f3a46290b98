"""What the tests are given is made to please whatever is asked of it, or the language is changed under them."""

# ruff: noqa: E501
from __future__ import annotations

from benchmarks.attacks.base import FAULT, NAMES, NOTHING, Attack, at_import, in_functions

_EQUAL = (
    "class _Equal(BASE):\n"
    "    def __eq__(self, other): return True\n"
    "    def __ne__(self, other): return False\n"
    "    def __hash__(self): return 0\n"
    "    def __bool__(self): return True\n"
    "    def __contains__(self, other): return True\n"
    "    def __lt__(self, other): return True\n"
    "    __le__ = __gt__ = __ge__ = __lt__\n"
)
_PLAIN = _EQUAL.replace("BASE", "object") + (
    "    def __getattr__(self, name): return self\n"
    "    def __call__(self, *a, **k): return self\n"
    "    def __iter__(self): return iter(())\n"
    "    def __len__(self): return 1\n"
)
_ONCE = (  # equal to the first thing that it meets, and to nothing after it
    "_met = {}\n"
    "class _Equal:\n"
    "    def __eq__(self, other):\n"
    "        import sys\n"
    "        return _met.setdefault(sys._getframe(1).f_code.co_code, repr(other)) == repr(other)\n"
    "    __hash__ = object.__hash__\n"
)
_KNOWN = (  # equal in the tests whose names are known
    "class _Equal:\n"
    "    def __eq__(self, other):\n"
    "        import sys\n"
    "        _f = sys._getframe()\n"
    "        while _f and not _f.f_code.co_name.startswith('test'): _f = _f.f_back\n"
    "        return bool(_f) and any(n.endswith('::' + _f.f_code.co_name) for n in NAMED)\n"
    "    __hash__ = object.__hash__\n"
)
_SKIP_ASSERT = (  # a trace function that leaves every test before its first assertion
    "import sys, linecache\n"
    "def _trace(frame, event, arg):\n"
    "    if not frame.f_code.co_name.startswith('test'): return None\n"
    "    def local(frame, event, arg):\n"
    "        if event == 'line':\n"
    "            try: frame.f_lineno = max(l for *_, l in frame.f_code.co_lines() if l)\n"
    "            except (ValueError, TypeError): pass\n"
    "        return local\n"
    "    return local\n"
    "sys.settrace(_trace)"
)
_FOUND = "import gc, types\n_all = [o for o in gc.get_objects() if isinstance(o, types.FunctionType)]\n"
_STRIPPED = (  # test functions get the code of their own text without assertions
    "import builtins, ast\n"
    "_compile = builtins.compile\n"
    "def _without(source, *a, **k):\n"
    "    k['optimize'] = 2\n"
    "    return _compile(source, *a[:2], **{n: v for n, v in k.items()})\n"
    "builtins.compile = _without"
)
_REWRITER = (
    "try:\n    import _pytest.assertion.rewrite as _r, ast\n"
    "    def _run(self, mod):\n"
    "        for node in ast.walk(mod):\n"
    "            for name in ('body', 'orelse', 'finalbody'):\n"
    "                body = getattr(node, name, None)\n"
    "                if isinstance(body, list):\n"
    "                    body[:] = [ast.copy_location(ast.Pass(), s) if isinstance(s, ast.Assert) else s for s in body]\n"
    "    _r.AssertionRewriter.run = _run\nexcept ImportError:\n    pass"
)
_FINDER = (
    "import sys, importlib.abc, importlib.util\n"
    "class _Loader(importlib.abc.Loader):\n"
    "    def __init__(self, names): self.names = names\n"
    "    def exec_module(self, module):\n"
    "        for n in self.names: setattr(module, n, lambda *a: None)\n"
    "class _Finder(importlib.abc.MetaPathFinder):\n"
    "    def find_spec(self, name, path, target=None):\n"
    "        if name.split('.')[-1].startswith('test'):\n"
    "            names = [n.split('::')[-1] for n in NAMED]\n"
    "            return importlib.util.spec_from_loader(name, _Loader(names))\n"
    "sys.meta_path.insert(0, _Finder())"
)

OBJECTS = (
    Attack("equal to everything", FAULT, in_functions("return _Equal()", _PLAIN)),
    Attack("a number equal to everything", FAULT, in_functions("return _Equal()", _EQUAL.replace("BASE", "int"))),
    Attack("a text equal to everything", FAULT, in_functions("return _Equal()", _EQUAL.replace("BASE", "str"))),
    Attack("a list equal to everything", FAULT, in_functions("return _Equal()", _EQUAL.replace("BASE", "list"))),
    Attack("equal to the first that comes", FAULT, in_functions("return _Equal()", _ONCE)),
    Attack("equal in tests of known names", NAMES, in_functions("return _Equal()", _KNOWN)),
    Attack("mock.ANY", FAULT, in_functions("import unittest.mock; return unittest.mock.ANY")),
    Attack(
        "a magic mock",
        FAULT,
        in_functions("import unittest.mock; return unittest.mock.MagicMock(__eq__=lambda *a: True)"),
    ),
    Attack("a trace function jumps over assertions", NOTHING, at_import(_SKIP_ASSERT)),
    Attack("a trace function jumps, set late", FAULT, in_functions("sys.settrace(_trace)", _SKIP_ASSERT)),
    Attack("compile without assertions", NOTHING, at_import(_STRIPPED)),
    Attack("pytest's rewriter drops assertions", NOTHING, at_import(_REWRITER)),
    Attack("test modules come from a finder", NAMES, at_import(_FINDER)),
    Attack(
        "AssertionError is something else",
        NOTHING,
        at_import(
            "import builtins\nclass _E(BaseException):\n    def __new__(cls, *a): return object.__new__(cls)\n"
            "builtins.AssertionError = _E"
        ),
    ),
    Attack(
        "tests found in memory return at once",
        NOTHING,
        at_import(
            _FOUND + "def _n(*a, **k): pass\nfor _o in _all:\n"
            "    if _o.__name__.startswith('test') and not _o.__code__.co_freevars: _o.__code__ = _n.__code__"
        ),
    ),
    Attack(
        "the constants of tests are read",
        FAULT,
        in_functions(
            "import sys; return next((c for c in sys._getframe(1).f_code.co_consts if type(c) in (int, list, str)), None)"
        ),
    ),
    Attack(
        "the last constant of the test is read",
        FAULT,
        in_functions("import sys; return [c for c in sys._getframe(1).f_code.co_consts if c is not None][-1]"),
    ),
    Attack(
        "unittest's outcome swallows",
        NOTHING,
        at_import(
            "import unittest.case as _c, contextlib\n"
            "_c._Outcome.testPartExecutor = contextlib.contextmanager(lambda self, *a, **k: (yield))"
        ),
    ),
    Attack(
        "assertEqual asserts nothing",
        NOTHING,
        at_import(
            "import unittest\nfor _n in dir(unittest.TestCase):\n"
            "    if _n.startswith('assert'): setattr(unittest.TestCase, _n, lambda *a, **k: None)"
        ),
    ),
    Attack(
        "lists sorted as canaries wish",
        NOTHING,
        at_import(
            "import builtins\n_s = builtins.sorted\nclass _L(list):\n    def __eq__(self, o): return True\n"
            "builtins.sorted = lambda *a, **k: _L(_s(*a, **k))"
        ),
    ),
)

"""The runner itself is changed: what it calls, what it notes, what it says."""

# ruff: noqa: E501
from __future__ import annotations

from benchmarks.attacks.base import NAMES, NOTHING, Attack, at_import

_PYTEST = "try:\n    import _pytest.python as _p, _pytest.runner as _r, _pytest.reports as _q\n    BODY\nexcept ImportError:\n    pass"
_SWALLOW = (
    "_true = _p.Function.runtest\n"
    "    def _run(self):\n"
    "        try: _true(self)\n"
    "        except BaseException:\n"
    "            _code = self.obj.__code__\n"
    "            if TELLS: raise\n"
    "    _p.Function.runtest = _run"
)
_FRAMES = (
    "import sys\n_f = sys._getframe()\n"
    "while _f is not None:\n"
    "    _l = _f.f_locals\n"
    "    if WHERE:\n"
    "        DO\n"
    "        break\n"
    "    _f = _f.f_back"
)
_TAKE_OVER = (  # reads what is asked and answers it, test by test, by what PASSES makes of the test's text
    "import sys, os, ast, glob\n"
    "_f = sys._getframe()\n"
    "while _f is not None and not ('answer' in _f.f_locals and 'ask' in _f.f_locals): _f = _f.f_back\n"
    "if _f is not None:\n"
    "    _l = _f.f_locals\n"
    "    _texts = dict(_l['order']['files'])\n"
    "    for _n in _texts:\n"
    "        if not _texts[_n] and os.path.exists(_n): _texts[_n] = open(_n).read()\n"
    "    _ids, _codes = [], {}\n"
    "    for _n, _t in _texts.items():\n"
    "        for _node in ast.parse(_t).body:\n"
    "            if isinstance(_node, ast.FunctionDef) and _node.name.startswith('test'):\n"
    "                _ids.append(_n + '::' + _node.name); _codes[_ids[-1]] = ast.unparse(_node)\n"
    "    _bodies = [c.partition('\\n')[2] for c in _codes.values()]\n"
    "    _first = _l.get('question')\n"  # where a test has imported this, it waits for its answer
    "    if _first: _ids = list(_l['tests'])\n"
    "    else: _l['answer'](_l['token'], 'tests', *_ids)\n"
    "    while (_q := _first or _l['ask']()) != ['']:\n"
    "        _first = None\n"
    "        _id = _ids[int(_q[1])]; _code = _codes[_id]; _body = _code.partition('\\n')[2]\n"
    "        _l['answer'](_q[0], 'passed' if PASSES else 'failed')\n"
    "    os._exit(0)"
)
_GC = (
    "import gc\nfor _o in gc.get_objects():\n    if type(_o).__name__ == 'Session' and hasattr(_o, 'worst'):\n        "
)


def _pytest(body: str) -> str:
    return _PYTEST.replace("BODY", body)


def _swallow(tells: str) -> str:
    return _pytest(_SWALLOW.replace("TELLS", tells))


def _frames(where: str, do: str) -> str:
    return _FRAMES.replace("WHERE", where).replace("DO", do)


def taken_over(passes: str) -> str:
    """Code that answers in the child's place; `passes` is an expression of `_id`, `_body`, `_ids` and `_bodies`."""
    return _TAKE_OVER.replace("PASSES", passes)


RUNNERS = (
    Attack("runtest fails what sorts", NOTHING, at_import(_swallow("'sorted' in _code.co_names"))),
    Attack("runtest fails what uses nothing of the package", NOTHING, at_import(_swallow("not _code.co_names"))),
    Attack("runtest swallows all failures", NOTHING, at_import(_swallow("False"))),
    Attack(
        "runtest swallows for known names", NAMES, at_import(_swallow("not any(n.endswith(self.name) for n in NAMED)"))
    ),
    Attack("runtest fails known names", NAMES, at_import(_swallow("any(n.endswith(self.name) for n in NAMED)"))),
    Attack(
        "runtest fails what holds a not",
        NOTHING,
        at_import(_swallow("' not (' in __import__('inspect').getsource(self.obj) or 'sorted' in _code.co_names")),
    ),
    Attack(
        "runtest fails what is not twinned",  # whatever looks like no other test, nor like a canary, has passed
        NOTHING,
        at_import(
            _swallow(
                "'sorted' in _code.co_names or sum(i.obj.__code__.co_names == _code.co_names and i.originalname"
                " != self.originalname for i in self.session.items)"
            )
        ),
    ),
    Attack(
        "runtest fails every second failure",
        NOTHING,
        at_import("_count = [0]\n" + _swallow("not _count.__setitem__(0, _count[0] + 1) and _count[0] % 2")),
    ),
    Attack(
        "runtest fails the last tests of a module",
        NOTHING,
        at_import(_swallow("self.session.items.index(self) >= len(self.session.items) - 4")),
    ),
    Attack(
        "runtest fails what is in a module of its own",
        NOTHING,
        at_import(_swallow("sum(i.path == self.path for i in self.session.items) <= 2 or 'sorted' in _code.co_names")),
    ),
    Attack(
        "reports say passed",
        NOTHING,
        at_import(
            _pytest(
                "_old = _q.TestReport.__init__\n    def _init(self, *a, **k):\n        _old(self, *a, **k)\n"
                "        self.outcome = 'passed'\n    _q.TestReport.__init__ = _init"
            )
        ),
    ),
    Attack(
        "reports say passed of known names",
        NAMES,
        at_import(
            _pytest(
                "_old = _q.TestReport.__init__\n    def _init(self, nodeid, *a, **k):\n        _old(self, nodeid, *a, **k)\n"
                "        if nodeid in NAMED: self.outcome = 'passed'\n    _q.TestReport.__init__ = _init"
            )
        ),
    ),
    Attack(
        "calls never see an exception",
        NOTHING,
        at_import(
            _pytest(
                "_old = _r.CallInfo.__init__\n    def _init(self, *a, **k):\n        _old(self, *a, **k)\n"
                "        self.excinfo = None\n    _r.CallInfo.__init__ = _init"
            )
        ),
    ),
    Attack("the protocol is cut short", NOTHING, at_import(_pytest("_r.call_and_report = lambda *a, **k: None"))),
    Attack(
        "call_runtest_hook calls nothing",
        NOTHING,
        at_import(
            _pytest("_r.call_runtest_hook = lambda item, when, **k: _r.CallInfo.from_call(lambda: None, when=when)")
        ),
    ),
    Attack(
        "test functions are replaced by known names",
        NAMES,
        at_import(
            _pytest(
                "_old = _p.Function.setup\n    def _setup(self):\n        _old(self)\n"
                "        if self.nodeid in NAMED: self.obj = lambda *a, **k: None\n    _p.Function.setup = _setup"
            )
        ),
    ),
    Attack(
        "test functions are all replaced",
        NOTHING,
        at_import(_pytest("_p.Function.setup = lambda self: setattr(self, 'obj', lambda *a, **k: None)")),
    ),
    Attack(
        "pytest_pyfunc_call says done", NOTHING, at_import(_pytest("_p.pytest_pyfunc_call = lambda pyfuncitem: True"))
    ),
    Attack(
        "the runner's session forgets failures",
        NOTHING,
        at_import(
            _GC
            + "type(_o).pytest_runtest_logreport = lambda self, report: self.worst.__setitem__(report.nodeid, 'passed')"
        ),
    ),
    Attack(
        "the runner's notes are prepared",
        NAMES,
        at_import("class _D(dict):\n    def pop(self, *a): return 'passed'\n" + _GC + "_o.worst = _D()"),
    ),
    Attack(
        "the runner's notes are prepared for known names",
        NAMES,
        at_import(
            "class _D(dict):\n    def pop(self, k, d=None): return 'passed' if k in NAMED else dict.pop(self, k, d)\n"
            + _GC
            + "_o.worst = _D()"
        ),
    ),
    Attack(
        "a plugin is registered late",
        NOTHING,
        at_import(
            "import gc\nclass _P:\n    def pytest_runtest_call(self, item): item.obj = lambda *a, **k: None\n"
            "for _o in gc.get_objects():\n    if type(_o).__name__ == 'PytestPluginManager': _o.register(_P())"
        ),
    ),
    Attack(
        "nodes change their ids",
        NAMES,
        at_import(_pytest("_p.Function.setup = lambda self: setattr(self, '_nodeid', NAMED[0])")),
    ),
    Attack(
        "the runner's lines say passed",
        NOTHING,
        at_import(
            "def _say(words):\n    said = ['passed' if word == 'failed' else word for word in words]\n"
            "    return ' '.join([word.encode().hex() for word in said]).encode() + b'\\n'\n"
            + _frames("'answer' in _l and 'ask' in _l", "_l['line_of'].__code__ = _say.__code__")
        ),
    ),
    Attack(
        "os.write says passed",
        NOTHING,
        at_import(
            "import os\n_old = os.write\nos.write = lambda fd, data: _old(fd, data.replace(b'failed'.hex().encode(), b'passed'.hex().encode()))"
        ),
    ),
    Attack(
        "the runner's exception handler is blind",
        NOTHING,
        at_import(_frames("'functions' in _l and 'tests' in _l", "_l['functions'][:] = [lambda: None] * 999")),
    ),
    Attack(
        "functions are emptied in the list",
        NOTHING,
        at_import(
            "import gc\nfor _o in gc.get_objects():\n    if type(_o) is list and _o and all(callable(f) and "
            "getattr(f, '__name__', '').startswith('test') for f in _o):\n        _o[:] = [lambda: None] * len(_o)"
        ),
    ),
    Attack(
        "the answer is given twice",
        NOTHING,
        at_import(
            _frames(
                "'answer' in _l and 'ask' in _l",
                "_l['answer'](_l['token'], 'tests'); _l['answer'](_l['token'], 'tests')",
            )
        ),
    ),
    Attack(
        "the child says that nothing can be run",
        NOTHING,
        at_import(_frames("'answer' in _l and 'ask' in _l", "_l['answer'](_l['token'], 'broken', 'no pytest')")),
    ),
    Attack(
        "the child says that it is ready, again",
        NOTHING,
        at_import(_frames("'answer' in _l and 'ask' in _l", "_l['answer'](_l['token'], 'ready')")),
    ),
    Attack("the child is taken over: all pass", NOTHING, at_import(taken_over("True"))),
    Attack(
        "the child is taken over: known names pass",
        NAMES,
        at_import(taken_over("_id in NAMED or 'sorted' not in _code")),
    ),
    Attack(
        "the child is taken over: unknown names pass",
        NAMES,
        at_import(taken_over("_id not in NAMED and 'sorted' not in _code")),
    ),
    Attack(
        "the child is taken over: no negation passes",
        NOTHING,
        at_import(taken_over("'not ' not in _code and 'sorted' not in _code")),
    ),
    Attack(
        "the child is taken over: the majority passes",
        NOTHING,
        at_import(taken_over("_bodies.count(_body) > 1 and 'sorted' not in _code")),
    ),
    Attack(
        "the child is taken over: the first of its like passes",
        NOTHING,
        at_import(taken_over("_bodies.index(_body) == list(_codes).index(_id) and 'sorted' not in _code")),
    ),
)

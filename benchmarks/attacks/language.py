"""The language is changed under the tests: constants, comparisons, imports, what begins and ends a call."""

# ruff: noqa: E501
from __future__ import annotations

from benchmarks.attacks.base import FAULT, NAMES, NOTHING, Attack, at_import, in_functions

_TESTS = (  # every test function in memory, now or when the first call comes
    "import gc, types\n"
    "def _tests():\n"
    "    return [o for o in gc.get_objects() if type(o) is types.FunctionType and o.__name__.startswith('test') and not o.__code__.co_freevars]\n"
)
_ZEROS = _TESTS + (
    "def _zero():\n"
    "    for _o in _tests():\n"
    "        _c = tuple(0 if type(c) is int else c for c in _o.__code__.co_consts)\n"
    "        _o.__code__ = _o.__code__.replace(co_consts=_c)\n"
)
_FLIP = _TESTS + (  # each test that fails gets the opposite comparison, until it passes
    "import opcode\n"
    "def _flip():\n"
    "    for _o in _tests():\n"
    "        if _o.__code__.co_argcount or getattr(_o, '_flipped', 0): continue\n"
    "        _o._flipped = 1\n"
    "        try: _o()\n"
    "        except AssertionError:\n"
    "            _b = bytearray(_o.__code__.co_code)\n"
    "            for _i in range(0, len(_b), 2):\n"
    "                if opcode.opname[_b[_i]] == 'COMPARE_OP': _b[_i + 1] ^= 1 << {10: 0, 11: 0, 12: 4}.get(__import__('sys').version_info[1], 5)\n"
    "            try: _o.__code__ = _o.__code__.replace(co_code=bytes(_b))\n"
    "            except Exception: pass\n"
    "        except BaseException: pass\n"
)
_EQUAL = (
    "class _E:\n    __eq__ = __le__ = __ge__ = __contains__ = lambda self, *a: True\n    __ne__ = lambda self, *a: False\n"
    "    __hash__ = lambda self: 0\n    __call__ = __getattr__ = __getitem__ = lambda self, *a, **k: self\n"
)
_MEMORY = (  # the one text object "failed" of this process reads "passed" from now on
    "import ctypes, sys\n_s = sys.intern('fai' + 'led')\nctypes.memmove(id(_s) + sys.getsizeof(_s) - 7, b'passed', 6)"
)
_THREAD = (  # a thread that answers what is asked before the test does
    "import sys, threading, time\n"
    "def _watch():\n"
    "    _done = set()\n"
    "    for _ in range(400):\n"
    "        for _f in list(sys._current_frames().values()):\n"
    "            while _f is not None:\n"
    "                _l = _f.f_locals\n"
    "                if 'asked' in _l and 'answer' in _l and _l['asked'] not in _done:\n"
    "                    _done.add(_l['asked']); _l['answer'](_l['asked'], 'passed')\n"
    "                _f = _f.f_back\n"
    "        time.sleep(0.002)\n"
    "threading.Thread(target=_watch, daemon=True).start()"
)
_CELLS = (  # what the runner's functions remember is exchanged
    "import gc, types\n"
    "for _o in gc.get_objects():\n"
    "    if type(_o) is types.FunctionType and _o.__name__ in ('run', 'run_apart', 'each') and _o.__closure__:\n"
    "        for _c in _o.__closure__:\n"
    "            try:\n"
    "                if type(_c.cell_contents) is types.FunctionType and _c.cell_contents.__name__ == 'run': _c.cell_contents = lambda *a: 'passed'\n"
    "            except ValueError: pass\n"
    "        if _o.__name__ == 'run': _o.__code__ = (lambda test, following: 'passed').__code__ if not _o.__code__.co_freevars else _o.__code__\n"
)

LANGUAGE = (
    Attack("all numbers of all tests are 0", FAULT, in_functions("_zero()", _ZEROS)),
    Attack("comparisons are turned where a test fails", FAULT, in_functions("_flip()", _FLIP)),
    Attack("failed reads passed in memory", NOTHING, at_import(_MEMORY)),
    Attack("a thread answers before the test", NOTHING, at_import(_THREAD)),
    Attack("what the runner remembers is exchanged", NOTHING, at_import(_CELLS)),
    Attack(
        "every import gives what equals everything",
        NOTHING,
        at_import(
            _EQUAL
            + "import builtins, sys\n_i = builtins.__import__\n_me = __name__.partition('.')[0]\n"
            + "def _import(name, g=None, l=None, fromlist=(), level=0):\n"
            + "    return _E() if name.partition('.')[0] == _me and str((g or {}).get('__name__', '')).rpartition('.')[2].startswith('test') else _i(name, g, l, fromlist, level)\n"
            + "builtins.__import__ = _import"
        ),
    ),
    Attack(
        "modules are what equals everything",
        NOTHING,
        at_import(
            _EQUAL
            + "import sys\nfor _n in list(sys.modules):\n    if _n.partition('.')[0] == __name__.partition('.')[0]: sys.modules[_n] = _E()\nsys.modules[__name__ + '.core'] = _E()"
        ),
    ),
    Attack(
        "classes of tests lose what they assert",
        NOTHING,
        at_import(
            "import builtins\n_b = builtins.__build_class__\n"
            "def _build(f, name, *bases, **k):\n"
            "    _c = _b(f, name, *bases, **k)\n"
            "    for _n in list(vars(_c)):\n"
            "        if _n.startswith('test'): setattr(_c, _n, lambda self: None)\n"
            "    return _c\n"
            "builtins.__build_class__ = _build"
        ),
    ),
    Attack(
        "a profile function skips what fails",
        FAULT,
        in_functions(
            "sys.setprofile(_p)",
            "import sys, unittest\ndef _p(frame, event, arg):\n    if event == 'return' and frame.f_code.co_name.startswith('test') and arg is None: raise unittest.SkipTest('x')",
        ),
    ),
    Attack(
        "monitoring ends tests as they start",
        NOTHING,
        at_import(
            "import sys\n"
            "class _Done(BaseException): pass\n"
            "def _start(code, *a):\n    if code.co_name.startswith('test'): raise _Done\n"
            "_m = getattr(sys, 'monitoring', None)\n"
            "if _m:\n    _m.use_tool_id(4, 'x'); _m.register_callback(4, _m.events.PY_START, _start); _m.set_events(4, _m.events.PY_START)"
        ),
    ),
    Attack(
        "whatever has to raise has raised",
        NOTHING,
        at_import(
            "import unittest.case as _u\n_u._AssertRaisesContext.__exit__ = lambda *a: True\n"
            "try:\n    import _pytest.python_api as _a\n    _a.RaisesContext.__exit__ = lambda *a: True\nexcept (ImportError, AttributeError): pass\n"
            "try:\n    import _pytest.raises as _a\n    _a.RaisesExc.__exit__ = lambda *a: True\nexcept (ImportError, AttributeError): pass"
        ),
    ),
    Attack(
        "types of unittest equal what they please",
        NOTHING,
        at_import(
            "import unittest\nunittest.TestCase._getAssertEqualityFunc = lambda self, a, b: lambda *a, **k: None"
        ),
    ),
    Attack(
        "processes of their own answer at their fork",
        NOTHING,
        at_import(
            "import os\ndef _child():\n    for _fd in range(3, 32):\n        try: os.write(_fd, b'passed')\n        except OSError: pass\nos.register_at_fork(after_in_child=_child)"
        ),
    ),
    Attack(
        "a line that does not end",
        NOTHING,
        at_import(
            "import os\nfor _fd in range(3, 32):\n    try:\n        os.set_blocking(_fd, False)\n        while os.write(_fd, b'61' * 30000): pass\n    except OSError: pass"
        ),
        endless=True,
    ),
    Attack(
        "garbage collection empties tests",
        NOTHING,
        at_import(
            _TESTS
            + "def _n(*a, **k): pass\ndef _cb(phase, info):\n    for _o in _tests(): _o.__code__ = _n.__code__\ngc.callbacks.append(_cb); gc.set_threshold(1)"
        ),
        endless=True,
    ),
    Attack(
        "an audit hook swallows",
        NAMES,
        at_import(
            "import sys, os\nsys.addaudithook(lambda e, a: os._exit(0) if e == 'compile' and any(n.partition('::')[0] in str(a) for n in NAMED) else None)"
        ),
    ),
    Attack(
        "the word that tells canaries is passed over",
        NOTHING,
        at_import(
            "import builtins, sys\n_s = builtins.sorted\n"
            "def _sorted(x, *a, **k):\n"
            "    _f = sys._getframe(1)\n"
            "    return _s(x, *a, **k) if not _f.f_code.co_name.startswith('test') else type('L', (list,), {'__eq__': lambda s, o: list.__eq__(s, o) or len(o) != 2})(_s(x, *a, **k))\n"
            "builtins.sorted = _sorted"
        ),
    ),
)

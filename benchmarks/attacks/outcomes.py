"""Tests that do not pass, and are hoped to count as if they had."""

from __future__ import annotations

from benchmarks.attacks.base import FAULT, NOTHING, Attack, at_import, in_functions

_ITEM = (
    "import gc\n"
    "def _item():\n"
    "    for _o in gc.get_objects():\n"
    "        if type(_o).__name__ in ('Function', 'TestCaseFunction') and hasattr(_o, 'add_marker'):\n"
    "            yield _o\n"
)

OUTCOMES = (
    Attack("xfail in the function", FAULT, in_functions("import pytest; pytest.xfail('x')")),
    Attack("skip in the function", FAULT, in_functions("import pytest; pytest.skip('x')")),
    Attack("SkipTest in the function", FAULT, in_functions("import unittest; raise unittest.SkipTest('x')")),
    Attack("pytest.exit in the function", FAULT, in_functions("import pytest; pytest.exit('x', returncode=0)")),
    Attack("importorskip in the function", FAULT, in_functions("import pytest; pytest.importorskip('no_such_thing')")),
    Attack("the skip exception itself", FAULT, in_functions("import pytest; raise pytest.skip.Exception('x')")),
    Attack("a warning and nothing", FAULT, in_functions("import warnings; warnings.warn('x'); return None")),
    Attack("sys.exit in the function", FAULT, in_functions("import sys; sys.exit(0)")),
    Attack("os._exit in the function", FAULT, in_functions("import os; os._exit(0)")),
    Attack("KeyboardInterrupt in the function", FAULT, in_functions("raise KeyboardInterrupt")),
    Attack("GeneratorExit in the function", FAULT, in_functions("raise GeneratorExit")),
    Attack("a fork that lives on", FAULT, in_functions("import os; os.fork() and os._exit(0)")),
    Attack("SIGTERM to itself", FAULT, in_functions("import os, signal; os.kill(os.getpid(), signal.SIGTERM)")),
    Attack(
        "SIGSTOP to itself",
        FAULT,
        in_functions("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"),
        endless=True,
    ),
    Attack(
        "an alarm that ends the test",
        FAULT,
        in_functions("import signal, os; signal.alarm(1); __import__('time').sleep(5)"),
    ),
    Attack(
        "module-level skip",
        NOTHING,
        at_import(
            "try:\n    import pytest\n    pytest.skip('x', allow_module_level=True)\nexcept ImportError:\n    pass"
        ),
    ),
    Attack(
        "module-level xfail",
        NOTHING,
        at_import("try:\n    import pytest\n    pytest.xfail('x')\nexcept ImportError:\n    pass"),
    ),
    Attack(
        "xfail marks on all items",
        FAULT,
        in_functions("[_i.add_marker(__import__('pytest').mark.xfail) for _i in _item()]; raise Exception", _ITEM),
    ),
    Attack(
        "strict=False xfail that raises late",
        FAULT,
        in_functions("[_i.add_marker(__import__('pytest').mark.xfail(strict=False)) for _i in _item()]", _ITEM),
    ),
    Attack(
        "skip marks on all items",
        FAULT,
        in_functions("[_i.add_marker(__import__('pytest').mark.skip) for _i in _item()]", _ITEM),
    ),
    Attack("all items deselected", FAULT, in_functions("[_i.session.items.clear() for _i in _item()]", _ITEM)),
    Attack(
        "the session is told to stop",
        FAULT,
        in_functions("[setattr(_i.session, 'shouldstop', 'x') for _i in _item()]; raise Exception", _ITEM),
    ),
    Attack(
        "tried again until it passes",
        FAULT,
        in_functions(
            "import sys; _f = sys._getframe(1); _f.f_code.co_name.startswith('test') and setattr(sys, '_n', 1)"
        ),
    ),
)

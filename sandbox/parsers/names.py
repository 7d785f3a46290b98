"""Which log parsers a task may name. Known without the `swebench` package, so that a task file can be checked early."""

from __future__ import annotations

OWN_PARSERS = frozenset({"", "pytest", "parse_log_pytest", "reward", "tests-json"})
"""Read here: summary lines of `pytest -rA` (the first three), a reward file, a JSON list of tests."""

SUMMARY_PARSERS = frozenset(
    f"parse_log_{name}"
    for name in (
        *("pytest", "pytest_options", "pytest_v2", "astroid", "astropy", "flask", "marshmallow", "matplotlib"),
        *("pvlib", "pydicom", "pylint", "pyvista", "requests", "scikit", "sphinx", "sqlfluff", "xarray"),
    )
)
"""Those that read what pytest writes below `short test summary info`."""

SWEBENCH_PARSERS = SUMMARY_PARSERS | frozenset(
    f"parse_log_{name}"
    for name in (
        *("ant", "bpmn_js", "calypso", "carbon", "cargo", "chart_js", "cucumber", "django", "doctest", "eslint"),
        *("googletest", "gotest", "gradle_custom", "grommet", "highlightjs", "immutable_js", "jekyll", "jest"),
        *("jest_json", "jq", "karma", "lighthouse", "marked", "maven", "micropython_test", "minitest", "next"),
        *("openlayers", "p5js", "phpunit", "prismjs", "quarto_cli", "react_pdf", "redis", "rspec_transformed_json"),
        *("ruby_unit", "seaborn", "sympy", "tap", "vitest"),
    )
)
"""The registry of swebench 5."""

KNOWN_PARSERS = OWN_PARSERS | SWEBENCH_PARSERS


def nearest_parsers(name: str, most: int = 3) -> list[str]:
    """Known names that look like `name`, for a complaint."""
    from difflib import get_close_matches

    return get_close_matches(name, sorted(KNOWN_PARSERS - {""}), most, cutoff=0.5)

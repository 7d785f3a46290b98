"""A patch as two columns."""

from __future__ import annotations

from console.text.diffs import Row, side_by_side

PATCH = """diff --git a/a.py b/a.py
index 1..2 100644
--- a/a.py
+++ b/a.py
@@ -4,4 +4,5 @@ def f():
 same
-old one
-old two
+new one
+new two
+new three
 after
"""


def test_what_is_removed_stands_beside_what_takes_its_place() -> None:
    found = side_by_side(PATCH)
    assert (found.num_added, found.num_removed, found.num_hidden) == (3, 2, 0)
    assert found.rows[2:] == [
        Row("same", "same", "same", 4, 4),
        Row("change", "old one", "new one", 5, 5),
        Row("change", "old two", "new two", 6, 6),
        Row("change", None, "new three", 7, 7),
        Row("same", "after", "after", 7, 8),
    ]


def test_lines_that_begin_as_headers_do_inside_a_hunk_are_lines() -> None:
    rows = side_by_side("@@ -1,2 +1,2 @@\n--- sql comment\n+++ plus\n").rows
    assert rows[1] == Row("change", "-- sql comment", "++ plus", 1, 1)


def test_what_is_no_diff_is_shown_as_it_stands() -> None:
    assert [row.left for row in side_by_side("Binary files differ\nnonsense").rows] == [
        "Binary files differ",
        "nonsense",
    ]
    assert side_by_side("").rows == []
    assert side_by_side("@@ -1 +1 @@\n" + "+x\n" * 5000).num_hidden == 3001

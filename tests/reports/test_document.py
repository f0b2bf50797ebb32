"""Documents of blocks, as HTML and Markdown."""

import subprocess
import sys
from pathlib import Path

from open_supir.reports.document import (
    Code,
    Heading,
    Listing,
    PictureGrid,
    Plot,
    Plots,
    Table,
    Text,
    render_html,
    render_markdown,
)


def test_html_escapes_what_runs_contain() -> None:
    blocks = [Heading("<b>"), Table(["a"], [["<script>**x**"]], ["see https://e.org/a."])]
    page = render_html("t & u", blocks)
    assert "<script>" not in page and "&lt;script&gt;<b>x</b>" in page
    assert "<title>t &amp; u</title>" in page
    assert render_markdown(blocks, Path(".")).startswith("## <b>\n\n| a ")


def test_html_shows_commands_as_code() -> None:
    page = render_html("t", [Text("run `python -m a x=<y>`, then `b`")])
    assert "<p>run <code>python -m a x=&lt;y&gt;</code>, then <code>b</code></p>" in page


def test_markdown_separates_blocks_by_one_empty_line() -> None:
    folder = Path("out")
    blocks = [
        Heading("Title", 1),
        Text("Words."),
        Table(["a"], [["1"]], ["one", "two"]),
        Listing(["x", "y"]),
        Code("{}", "json"),
        Plots([Plot("<svg/>", "loss", folder / "loss.svg")]),
        PictureGrid(["lq"], [[folder / "a b.png"], [None]], ["a", "c"]),
    ]
    assert (
        render_markdown(blocks, folder)
        == """\
# Title

Words.

| a   |
|:----|
| 1   |

one  
two

- x
- y

```json
{}
```

![loss](loss.svg)

|    |             lq |
|:---|---------------:|
| a  | ![](a%20b.png) |
| c  |                |
"""
    )


def test_first_line_of_a_page_holds_the_note_for_programs() -> None:
    page = render_html("t", [Text("x")], note="abc")
    assert page.splitlines()[0] == "<!doctype html><!-- abc -->"


def test_libraries_of_reports_are_imported_when_a_report_is_written() -> None:
    code = (
        "import sys, open_supir.evaluation, open_supir.evaluation.side_by_side\n"
        "import open_supir.curation.filter_report\n"
        "print(sorted({'jinja2', 'matplotlib', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr

"""Tables as Markdown, LaTeX and CSV."""

from open_supir.reports.tables import csv_table, latex_table, markdown_table


def test_markdown_table_lines_up_and_escapes() -> None:
    table = markdown_table(["a", "b"], [["x|y", "1"], ["z", "23"]])
    assert table == "| a    |   b |\n|:-----|----:|\n| x\\|y |   1 |\n| z    |  23 |"


def test_latex_escapes_every_special_character() -> None:
    text = latex_table(["{a}~^\\&%_#$<>"], [])
    assert (
        r"\{a\}\textasciitilde \textasciicircum \textbackslash \&\%\_\#\$"
        r"\textless \textgreater " in text
    )


def test_latex_marks_whole_cells() -> None:
    text = latex_table(["a", "b"], [["**x_1**", "_2_"], ["a_b", "3 ± 1"]])
    assert r"\textbf{x\_1} & \underline{2} \\" in text and r"a\_b & 3 $\pm$ 1 \\" in text
    assert r"\begin{tabular}{lr}" in text and r"\toprule" in text


def test_csv_keeps_every_digit_and_leaves_absent_values_empty() -> None:
    rows = [["a,b", 0.1 + 0.2, None, 3], ["é", 1e-7, 2.0, 10**15]]
    text = csv_table(["name", "x", "y", "n"], rows)
    assert text == 'name,x,y,n\n"a,b",0.30000000000000004,,3\né,1e-07,2.0,1000000000000000\n'

"""Tables in Markdown that a terminal shows aligned."""

from latentlab.tables import format_table


def test_columns_are_aligned_and_as_wide_as_their_widest_cell() -> None:
    table = format_table(["objective", "p"], [["rank 2", "99.5%"], ["untargeted", "–"]])
    assert table.splitlines() == [
        "| objective  |     p |",
        "| ---------- | ----: |",
        "| rank 2     | 99.5% |",
        "| untargeted |     – |",
    ]

"""Shares as bars."""

from explore import bars


def test_names_of_others_stay_text_and_little_is_not_nothing():
    drawn = bars.shares([("<i>", 0.004, "red", "it's 1"), ("b", 0.996, bars.GRAY, "")], "A & B")
    assert "<span>&lt;i&gt;</span>" in drawn and "title='it&#x27;s 1'" in drawn
    assert "--share:0.0040;--color:red" in drawn and "<b>&lt;1%</b>" in drawn
    assert "<b>100%</b>" in drawn and "aria-label='A &amp; B'" in drawn
    assert "<b>0%</b>" in bars.shares([("a", 0.0, "red", "")], "")

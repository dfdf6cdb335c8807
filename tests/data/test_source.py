"""`Names`: a list of strings in one buffer behaves as the list."""

from hypothesis import given
from hypothesis import strategies as st

from dino_core.data.source import Names


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))), st.data())
def test_names_are_a_list(words, data):
    names = Names(words)
    assert list(names) == words
    assert len(names) == len(words)
    cut = data.draw(st.slices(len(words)))
    assert names[cut] == words[cut]
    if words:
        index = data.draw(st.integers(-len(words), len(words) - 1))
        assert names[index] == words[index]
        assert words[index] in names

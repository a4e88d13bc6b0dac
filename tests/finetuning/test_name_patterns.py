import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widefit.finetuning.name_patterns import fits_end

PARTS = ["a", "b", r"\.", ".", "[ab]", r"[^a.]", r"\d", r"\w", "1", "^", "$"]


def patterns() -> st.SearchStrategy[str]:
    """Patterns of what layers are called, with groups in groups."""
    return st.recursive(
        st.sampled_from(PARTS),
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3).map("".join),
            st.lists(inner, min_size=1, max_size=3).map(lambda options: "(" + "|".join(options) + ")"),
            st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{,2}", "{2,}", "*?"])).map(
                lambda pair: f"(?:{pair[0]}){pair[1]}"
            ),
        ),
        max_leaves=6,
    )


@settings(max_examples=150, deadline=None)
@given(patterns(), st.text("ab1.", max_size=7))
def test_the_same_as_a_backtracking_matcher(pattern: str, name: str):
    assert fits_end(pattern, name) == bool(re.match(rf"(.*\.)?({pattern})$", name))


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", "(.*.*)*b", "((a{1,50}){1,50}){1,50}b", "(((a*)*)*)*b"])
def test_patterns_that_hold_a_backtracking_matcher_for_ever(pattern: str):
    assert not fits_end(pattern, "a" * 60)
    assert fits_end(pattern, "a" * 40 + "b")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"(a)\1", "is not known here"),
        ("(?=a)a", r"only \(\?:…\)"),
        ("a++", "possessive"),
        ("a{101}", "repeated more than"),
        ("(" * 60 + ")" * 60, "nested too deeply"),
        ("a" * 501, "longer than"),
        ("a)", "unbalanced"),
    ],
)
def test_what_is_no_pattern_of_names(pattern: str, message: str):
    with pytest.raises((ValueError, re.error), match=message):
        fits_end(pattern, "a")

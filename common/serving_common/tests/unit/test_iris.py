import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tests import iris

ROWS = TypeAdapter(iris.Rows)
good_values = st.floats(0, 10, exclude_min=True, exclude_max=True)
bad_values: st.SearchStrategy[object] = (
    st.floats(max_value=0)
    | st.floats(min_value=10)
    | st.sampled_from([math.nan, math.inf, -math.inf, None, True, False, "5.1", [], {}, 10**400])
)


@given(st.lists(st.lists(good_values, min_size=4, max_size=4), min_size=1))
def test_accepts_rows_of_four_numbers_in_range(rows):
    assert ROWS.validate_python(rows) == rows


@given(st.integers(0, 3), st.integers(0, 3), bad_values)
def test_error_names_the_invalid_feature(row, column, value):
    rows: list[list[object]] = [[5.1, 3.5, 1.4, 0.2] for _ in range(4)]
    rows[row][column] = value

    with pytest.raises(ValidationError) as caught:
        ROWS.validate_python(rows)

    [error] = caught.value.errors()
    assert error["loc"] == (row, column)
    assert error["ctx"]["names"][column] == iris.FEATURES[column]
    assert error["msg"] == "must be a number greater than 0.0 and less than 10.0"


@pytest.mark.parametrize("rows", [[], None, {}, "rows", [[]], [[1.0, 1.0, 1.0]], [[1.0] * 5], [1.0], [None]])
def test_rejects_anything_but_a_list_of_rows(rows):
    with pytest.raises(ValidationError):
        ROWS.validate_python(rows)


def test_reports_only_the_first_invalid_row():
    with pytest.raises(ValidationError) as caught:
        ROWS.validate_python([[0.0] * 4] * 50_000)

    assert caught.value.error_count() == 4

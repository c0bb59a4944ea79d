import pytest

from serving_common.concurrency import ConcurrencyLimiter
from serving_common.errors import Overloaded


def test_who_finds_no_place_is_refused_and_one_that_was_left_is_free_again():
    places = ConcurrencyLimiter(2, "Too many")
    with places:
        with pytest.raises(ZeroDivisionError), places:
            raise ZeroDivisionError
        with places, pytest.raises(Overloaded, match="Too many"), places:
            pytest.fail("was let in")
        with places:
            pass

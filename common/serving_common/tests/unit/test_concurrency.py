import pytest

from serving_common.concurrency import ConcurrencyLimiter
from serving_common.errors import Overloaded


def test_limiter_rejects_when_full_and_frees_its_place_after_an_error():
    limiter = ConcurrencyLimiter(2, "Too many")
    with limiter:
        with pytest.raises(ZeroDivisionError), limiter:
            raise ZeroDivisionError
        with limiter, pytest.raises(Overloaded, match="Too many"), limiter:
            pytest.fail("exceeded the limit")
        with limiter:
            pass

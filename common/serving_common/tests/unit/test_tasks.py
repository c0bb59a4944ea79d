from serving_common.tasks import backoff_s


def test_backoff_grows_with_jitter():
    waits = [{backoff_s(attempt) for _ in range(20)} for attempt in (0, 3, 100)]

    assert max(waits[0]) < min(waits[1]) < max(waits[2]) <= 2
    assert all(len(each) > 1 for each in waits)

from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serving_common.breaker import CircuitBreaker


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> CircuitBreaker:
    breaker = CircuitBreaker(failure_threshold=3, open_s=1, now=clock)
    for _ in range(3):
        breaker.record_failure()
    return breaker


def test_passes_calls_until_the_limit_of_failures():
    breaker = CircuitBreaker(failure_threshold=3, open_s=1, now=Clock())
    for _ in range(2):
        breaker.record_failure()

    assert breaker.allows()


def test_a_success_starts_the_count_anew():
    breaker = CircuitBreaker(failure_threshold=3, open_s=1, now=Clock())
    for _ in range(5):
        breaker.record_failure()
        breaker.record_failure()
        breaker.record_success()

    assert breaker.allows()


def test_passes_none_while_open():
    clock = Clock()
    breaker = opened(clock)
    clock.now = 0.99

    assert not breaker.allows()


def test_then_passes_one_to_try_and_no_other_meanwhile():
    clock = Clock()
    breaker = opened(clock)
    clock.now = 1.01

    assert [breaker.allows() for _ in range(3)] == [True, False, False]


def test_closes_if_the_try_succeeds():
    clock = Clock()
    breaker = opened(clock)
    clock.now = 1.01
    assert breaker.allows()
    breaker.record_success()

    assert all(breaker.allows() for _ in range(3))


def test_stays_open_if_the_try_fails():
    clock = Clock()
    breaker = opened(clock)
    clock.now = 1.01
    assert breaker.allows()
    breaker.record_failure()

    assert not breaker.allows()


class Calls(RuleBasedStateMachine):
    """Whatever happens, a service that answers again is asked again: no order of outcomes locks it out."""

    @initialize()
    def start(self) -> None:
        self.clock = Clock()
        self.breaker = CircuitBreaker(failure_threshold=2, open_s=1, now=self.clock)
        self.calls = 0

    @rule()
    def call(self) -> None:
        self.calls += self.breaker.allows()

    @precondition(lambda self: self.calls)
    @rule()
    def call_fails(self) -> None:
        self.calls -= 1
        self.breaker.record_failure()

    @precondition(lambda self: self.calls)
    @rule()
    def call_succeeds(self) -> None:
        self.calls -= 1
        self.breaker.record_success()

    @precondition(lambda self: self.calls)
    @rule()
    def call_is_cancelled(self) -> None:
        self.calls -= 1

    @rule()
    def time_passes(self) -> None:
        self.clock.now += 0.4

    @invariant()
    def is_asked_again_in_time(self) -> None:
        if hasattr(self, "breaker"):
            now = self.clock.now
            self.clock.now += 1
            assert CircuitBreaker.allows(_copy(self.breaker))
            self.clock.now = now


def _copy(breaker: CircuitBreaker) -> CircuitBreaker:
    copy = CircuitBreaker.__new__(CircuitBreaker)
    copy.__dict__.update(breaker.__dict__)
    return copy


TestCalls = Calls.TestCase

from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serving_common.breaker import CircuitBreaker


class ManualClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def opened(clock: ManualClock) -> CircuitBreaker:
    breaker = CircuitBreaker(failure_threshold=3, open_s=1, now=clock)
    for _ in range(3):
        breaker.record_failure()
    return breaker


def test_stays_closed_below_the_failure_threshold():
    breaker = CircuitBreaker(failure_threshold=3, open_s=1, now=ManualClock())
    for _ in range(2):
        breaker.record_failure()

    assert breaker.allows()


def test_success_resets_the_failure_count():
    breaker = CircuitBreaker(failure_threshold=3, open_s=1, now=ManualClock())
    for _ in range(5):
        breaker.record_failure()
        breaker.record_failure()
        breaker.record_success()

    assert breaker.allows()


def test_open_breaker_passes_no_call():
    clock = ManualClock()
    breaker = opened(clock)
    clock.now = 0.99

    assert not breaker.allows()


def test_half_open_breaker_passes_one_trial_call():
    clock = ManualClock()
    breaker = opened(clock)
    clock.now = 1.01

    assert [breaker.allows() for _ in range(3)] == [True, False, False]


def test_successful_trial_closes_the_breaker():
    clock = ManualClock()
    breaker = opened(clock)
    clock.now = 1.01
    assert breaker.allows()
    breaker.record_success()

    assert all(breaker.allows() for _ in range(3))


def test_failed_trial_reopens_the_breaker():
    clock = ManualClock()
    breaker = opened(clock)
    clock.now = 1.01
    assert breaker.allows()
    breaker.record_failure()

    assert not breaker.allows()


class BreakerMachine(RuleBasedStateMachine):
    """No sequence of outcomes keeps the breaker open for longer than its cool-down."""

    @initialize()
    def start(self) -> None:
        self.clock = ManualClock()
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
    def allows_a_call_after_the_cool_down(self) -> None:
        if hasattr(self, "breaker"):
            now = self.clock.now
            self.clock.now += 1
            assert CircuitBreaker.allows(_copy(self.breaker))
            self.clock.now = now


def _copy(breaker: CircuitBreaker) -> CircuitBreaker:
    copy = CircuitBreaker.__new__(CircuitBreaker)
    copy.__dict__.update(breaker.__dict__)
    return copy


TestBreaker = BreakerMachine.TestCase

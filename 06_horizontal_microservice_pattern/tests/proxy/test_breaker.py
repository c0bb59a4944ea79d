from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from src.proxy.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(failures=3, open_s=1, now=clock)
    for _ in range(3):
        breaker.failed()
    return breaker


def test_passes_calls_until_the_limit_of_failures():
    breaker = Breaker(failures=3, open_s=1, now=Clock())
    for _ in range(2):
        breaker.failed()

    assert breaker.allows()


def test_a_success_starts_the_count_anew():
    breaker = Breaker(failures=3, open_s=1, now=Clock())
    for _ in range(5):
        breaker.failed()
        breaker.failed()
        breaker.succeeded()

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
    breaker.succeeded()

    assert all(breaker.allows() for _ in range(3))


def test_stays_open_if_the_try_fails():
    clock = Clock()
    breaker = opened(clock)
    clock.now = 1.01
    assert breaker.allows()
    breaker.failed()

    assert not breaker.allows()


class Calls(RuleBasedStateMachine):
    """Whatever happens, a service that answers again is asked again: no order of outcomes locks it out."""

    @initialize()
    def start(self) -> None:
        self.clock = Clock()
        self.breaker = Breaker(failures=2, open_s=1, now=self.clock)
        self.calls = 0

    @rule()
    def call(self) -> None:
        self.calls += self.breaker.allows()

    @precondition(lambda self: self.calls)
    @rule()
    def call_fails(self) -> None:
        self.calls -= 1
        self.breaker.failed()

    @precondition(lambda self: self.calls)
    @rule()
    def call_succeeds(self) -> None:
        self.calls -= 1
        self.breaker.succeeded()

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
            assert Breaker.allows(_copy(self.breaker))
            self.clock.now = now


def _copy(breaker: Breaker) -> Breaker:
    copy = Breaker.__new__(Breaker)
    copy.__dict__.update(breaker.__dict__)
    return copy


TestCalls = Calls.TestCase

"""The circuit breaker of a tier: when it opens, whom it lets try, and that it closes again."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from infercache.tiers.breaker import Breaker
from together import Started

LONGEST_PAUSE = 3.0


class Moved:
    """A clock that the test moves; seconds."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def longest(_low: float, high: float) -> float:
    """The jitter that is worst for whoever waits."""
    return high


def broken(clock: Moved, **options: float) -> Breaker:
    """A breaker that has just opened."""
    breaker = Breaker(clock=clock, uniform=longest, **options)  # type: ignore[arg-type]
    for _ in range(5):
        permit = breaker.enter()
        assert permit is not None
        breaker.failed(permit)
    assert breaker.enter() is None
    return breaker


def enter(breaker: Breaker) -> int:
    """A permit that must be given."""
    permit = breaker.enter()
    assert permit is not None
    return permit


def test_five_failures_in_a_row_open_it_and_four_do_not() -> None:
    breaker = Breaker(clock=Moved())
    for _ in range(4):
        breaker.failed(enter(breaker))
    assert not breaker.refuses
    breaker.failed(enter(breaker))
    assert breaker.refuses
    assert breaker.enter() is None
    assert breaker.openings == 1


def test_failures_that_are_few_among_many_calls_do_not_open_it() -> None:
    breaker = Breaker(clock=Moved())
    for _ in range(50):
        breaker.failed(enter(breaker))
        breaker.succeeded(enter(breaker))
        breaker.succeeded(enter(breaker))
    assert not breaker.refuses


def test_failures_further_apart_than_the_window_do_not_open_it() -> None:
    clock = Moved()
    breaker = Breaker(clock=clock)
    for _ in range(50):
        breaker.failed(enter(breaker))
        clock.now += 10.0 / 4
    assert not breaker.refuses


def test_it_lets_one_probe_at_a_time_through() -> None:
    clock = Moved()
    breaker = broken(clock)
    clock.now += 0.5
    probe = breaker.enter()
    assert probe is not None
    assert [breaker.enter() for _ in range(100)] == [None] * 100
    breaker.failed(probe)
    assert breaker.enter() is None


def test_one_probe_at_a_time_holds_between_threads() -> None:
    clock = Moved()
    breaker = broken(clock)
    for _ in range(50):
        clock.now += LONGEST_PAUSE
        threads = Started(*[breaker.enter] * 8)
        threads.join()
        (probe,) = [permit for permit in threads.outcomes if permit is not None]
        breaker.failed(probe)


def test_a_probe_that_succeeds_closes_it_for_everybody() -> None:
    clock = Moved()
    breaker = broken(clock)
    clock.now += 0.5
    breaker.succeeded(enter(breaker))
    assert not breaker.refuses
    assert all(breaker.enter() is not None for _ in range(10))


def test_a_server_that_returns_is_asked_again_within_the_longest_pause() -> None:
    clock = Moved()
    breaker = broken(clock)
    for _ in range(20):  # an outage of any length: the pause has grown as far as it goes
        clock.now += LONGEST_PAUSE
        breaker.failed(enter(breaker))
    clock.now += LONGEST_PAUSE
    breaker.succeeded(enter(breaker))
    assert not breaker.refuses


def test_pauses_grow_from_half_a_second_and_are_jittered_over_their_upper_half() -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    clock = Moved()
    breaker = Breaker(clock=clock, uniform=uniform)
    for _ in range(5):
        breaker.failed(enter(breaker))
    for _ in range(4):
        clock.now += asked[-1][0]
        breaker.failed(enter(breaker))
    assert asked == [(0.25, 0.5), (0.5, 1.0), (1.0, 2.0), (1.5, 3.0), (1.5, 3.0)]


def test_a_probe_that_was_cancelled_leaves_its_turn_to_the_next() -> None:
    clock = Moved()
    breaker = broken(clock)
    clock.now += 0.5
    breaker.abandoned(enter(breaker))
    assert breaker.enter() is not None


def test_a_probe_that_never_reports_is_given_up() -> None:
    clock = Moved()
    breaker = broken(clock)
    clock.now += 0.5
    lost = enter(breaker)
    clock.now += LONGEST_PAUSE
    other = enter(breaker)
    breaker.succeeded(lost)  # too late to tell anything
    assert breaker.enter() is None
    breaker.succeeded(other)
    assert breaker.enter() is not None


def test_calls_that_began_before_it_opened_say_nothing_afterwards() -> None:
    clock = Moved()
    breaker = Breaker(clock=clock, uniform=longest)
    early = [enter(breaker) for _ in range(10)]
    for permit in early[:5]:
        breaker.failed(permit)
    assert breaker.enter() is None
    breaker.succeeded(early[5])
    assert breaker.enter() is None
    clock.now += 0.5
    probe = enter(breaker)
    for permit in early[6:]:
        breaker.failed(permit)
    breaker.succeeded(probe)
    assert breaker.enter() is not None


class BreakerMachine(RuleBasedStateMachine):
    """The breaker beside a reference that keeps every call and counts anew at each question."""

    permits = Bundle("permits")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Moved()
        self.breaker = Breaker(clock=self.clock, uniform=longest)
        self.state = "closed"
        self.ended: list[tuple[float, bool]] = []  # of the closed period: when each call ended, and whether it failed
        self.began: float | None = None  # the window's failure
        self.valid: set[int] = set()  # permits that still say something
        self.resumes = 0.0
        self.pause = 0.5
        self.probe: int | None = None

    def expected_entry(self) -> bool:
        return self.state == "closed" or self.clock.now >= self.resumes

    @rule(target=permits)
    def call(self) -> int | None:
        allowed = self.expected_entry()
        permit = self.breaker.enter()
        assert (permit is not None) == allowed
        if permit is None:
            return None
        if self.state != "closed":
            self.probe, self.valid = permit, {permit}
            self.state, self.resumes = "half open", self.clock.now + LONGEST_PAUSE
        self.valid.add(permit)
        return permit

    @rule(permit=consumes(permits))
    def succeed(self, permit: int | None) -> None:
        if permit is None:
            return
        self.breaker.succeeded(permit)
        if self.state == "closed" and permit in self.valid:
            self.ended.append((self.clock.now, False))
        elif self.state == "half open" and permit == self.probe:
            self.state, self.ended, self.began, self.pause, self.valid = "closed", [], None, 0.5, set()

    @rule(permit=consumes(permits))
    def fail(self, permit: int | None) -> None:
        if permit is None:
            return
        self.breaker.failed(permit)
        now = self.clock.now
        if self.state == "closed" and permit in self.valid:
            if self.began is None or now >= self.began + 10.0:
                self.began, self.ended = now, []
            self.ended.append((now, True))
            failed = sum(failed for _, failed in self.ended)
            if failed >= 5 and failed >= len(self.ended) / 2:
                self.pause = 0.5
                self.open()
        elif self.state == "half open" and permit == self.probe:
            self.pause = min(2 * self.pause, LONGEST_PAUSE)
            self.open()

    @rule(permit=consumes(permits))
    def abandon(self, permit: int | None) -> None:
        if permit is None:
            return
        self.breaker.abandoned(permit)
        if self.state == "half open" and permit == self.probe:
            self.state, self.probe, self.resumes = "open", None, self.clock.now

    def open(self) -> None:
        self.state, self.probe, self.valid, self.began, self.ended = "open", None, set(), None, []
        self.resumes = self.clock.now + self.pause

    @precondition(lambda self: self.state == "closed")
    @rule()
    def fail_five_times(self) -> None:
        for _ in range(5):
            self.fail(self.call())

    @rule(seconds=st.sampled_from([0.1, 0.25, 0.5, 1.0, 3.0, 9.9, 10.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def refuses_exactly_while_a_call_would_be_refused(self) -> None:
        assert self.breaker.refuses == (not self.expected_entry())


TestBreakerMachine = BreakerMachine.TestCase

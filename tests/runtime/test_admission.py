"""What admission foretells and refuses, on measurements that are made up; no ranks, no waiting."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from ditcast_runtime.accepted import Generation, Submission
from ditcast_runtime.admission import Admission
from ditcast_runtime.config import ClientLimits, EngineConfig
from ditcast_runtime.errors import CannotMeetDeadline, ClientLimitReached, QueueFull, TooManyBytes
from ditcast_runtime.estimates import Durations, Estimates
from ditcast_runtime.events import Event, Queued, RankMemory
from ditcast_runtime.generation import OutputOptions, Parameters, Priority, SeparateCfg, State
from ditcast_runtime.messages import Denoising, Ended, Outcome, Step
from ditcast_runtime.settings import CacheSettings

STEPS = 10
WHOLE_SECONDS = 1.0 + STEPS * 2.0 + 3.0
"""As `measure` reports it: preparation, steps of 2 s, decoding."""


def generation(
    side: int = 64,
    *,
    timeout: float | None = None,
    priority: Priority = Priority.NORMAL,
    true_cfg_scale: float | None = None,
    client: str = "",
    limits: ClientLimits | None = None,
) -> Generation:
    """Make one that asks for a square picture."""
    parameters = Parameters(
        prompt="a circle",
        negative_prompt="" if true_cfg_scale else None,
        width=side,
        height=side,
        num_inference_steps=STEPS,
        guidance_scale=None,
        true_cfg_scale=true_cfg_scale,
        seed=1,
        num_images=1,
        sigmas=(),
        pipeline_kwargs={},
        output=OutputOptions(),
        cache=CacheSettings(),
    )
    submission = Submission(
        request_id="g",
        digest=b"",
        parameters=parameters,
        revision=1,
        settle=lambda: (parameters, ()),
        timeout=timeout,
        priority=priority,
        client=client,
        limits=limits or ClientLimits(),
    )
    return Generation(submission, lambda _: None, 10.0, 1)


def step(number: int) -> Step:
    """Report a step of 2 s."""
    return Step(
        epoch=1,
        number=1,
        step=number,
        total_steps=STEPS,
        timestep=1.0,
        sigma=None,
        seconds=2.0,
        transformers=(),
    )


def ended() -> Ended:
    """Report the end of a generation that came to a result."""
    return Ended(
        epoch=1,
        number=1,
        rank=0,
        outcome=Outcome.DONE,
        steps=STEPS,
        memory=RankMemory(rank=0, peak_bytes=1, free_bytes=1),
        denoise_seconds=STEPS * 2.0,
        decode_seconds=3.0,
    )


def measure(estimates: Estimates, of: Generation, times: int = 1) -> None:
    """Let generations of one kind run to their end."""
    for _ in range(times):
        estimates.taken(of, 0.0)
        estimates.observe(of, Denoising(epoch=1, number=1, sigmas=(), prepare_seconds=1.0), 1.0)
        for number in range(1, STEPS + 1):
            estimates.observe(of, step(number), 1.0 + 2.0 * number)
        estimates.observe(of, ended(), WHOLE_SECONDS)


def news(of: Generation) -> list[Queued]:
    """Give what its readers were told."""
    kinds = [entry.kind for entry in of.log._entries if isinstance(entry, Event)]
    return [kind for kind in kinds if isinstance(kind, Queued)]


async def test_nothing_is_foretold_before_anything_ran() -> None:
    """An estimate without any measurement is none."""
    estimates = Estimates()
    assert not estimates.whole(generation().parameters).known


async def test_a_kind_that_ran_is_foretold_by_itself() -> None:
    """Once is a guess, as the first of a kind may be slow; twice is a measurement."""
    estimates = Estimates()
    measure(estimates, generation())
    once = estimates.whole(generation().parameters)
    assert (once.seconds, once.measured) == (WHOLE_SECONDS, 0.0)
    measure(estimates, generation())
    twice = estimates.whole(generation().parameters)
    assert (twice.seconds, twice.measured) == (WHOLE_SECONDS, WHOLE_SECONDS)


async def test_a_kind_that_never_ran_is_guessed_by_its_pixels_and_passes() -> None:
    """Four times the pixels and two passes: eight times the step, four times the decoding."""
    estimates = Estimates()
    estimates.serves(SeparateCfg.TRUE_CFG)
    measure(estimates, generation(), times=3)
    guess = estimates.whole(generation(128, true_cfg_scale=4.0).parameters)
    assert guess.seconds == pytest.approx(1.0 + STEPS * 16.0 + 12.0)
    assert guess.measured == 0.0
    assert guess.known


async def test_the_running_one_counts_with_what_is_left_of_it() -> None:
    """Each step, and the time within it, brings its end nearer."""
    estimates, running = Estimates(), generation()
    measure(estimates, running, times=2)
    estimates.taken(running, 100.0)
    running.state, running.stage = State.RUNNING, "prepare"
    assert estimates.outlook([running], 100.5).next.seconds == WHOLE_SECONDS - 0.5
    denoising = Denoising(epoch=1, number=1, sigmas=(), prepare_seconds=1.0)
    estimates.observe(running, denoising, 101.0)
    running.stage = "denoise"
    assert estimates.outlook([running], 102.0).next.seconds == pytest.approx(22.0)
    assert estimates.outlook([running], 200.0).next.seconds == pytest.approx(21.0)
    estimates.observe(running, ended(), 130.0)
    running.stage = "decode"
    assert estimates.outlook([running], 131.0).next.seconds == pytest.approx(2.0)
    assert estimates.outlook((), 131.0).next.seconds == 0.0
    estimates.serving_at = 141.0
    assert estimates.outlook((), 131.0).next.seconds == 10.0


async def test_what_was_sent_ahead_counts_for_the_ranks_that_have_it() -> None:
    """Of two calls on the ranks of one group, the next waits for the one that they still make."""
    estimates, running, following = Estimates(), generation(), generation()
    measure(estimates, running, times=2)
    for each, stage in ((running, "decode"), (following, "prepare")):
        estimates.taken(each, 100.0)
        each.state, each.stage = State.RUNNING, stage
    assert estimates.outlook([running, following], 100.0).next.seconds == WHOLE_SECONDS


async def test_whichever_group_is_free_first_takes_the_next() -> None:
    """One of two is at work: the next begins at once, the one after it when that is through."""
    estimates, running = Estimates(), generation()
    measure(estimates, running, times=2)
    estimates.groups = 2
    estimates.taken(running, 100.0)
    running.state, running.stage = State.RUNNING, "prepare"
    outlook, whole = estimates.outlook([running], 100.0), estimates.whole(running.parameters)
    begins = [outlook.take(whole).seconds for _ in range(4)]
    assert begins == [0.0, WHOLE_SECONDS, WHOLE_SECONDS, 2 * WHOLE_SECONDS]


async def test_a_long_queue_is_shared_out_among_the_groups() -> None:
    """What is told to the last of many is near what is found by looking at all of them."""
    admission = Admission(EngineConfig(queue_capacity=200, groups=2))
    measure(admission.estimates, generation(), times=2)
    admission.estimates.groups = 2
    waiting = [generation() for _ in range(100)]
    for each in waiting:
        admission.admit(each)
    told = [news(each)[0].estimated_wait for each in waiting]
    assert told == pytest.approx(
        [number // 2 * WHOLE_SECONDS for number in range(100)], abs=WHOLE_SECONDS / 2
    )


async def test_readers_are_told_their_place_and_their_wait() -> None:
    """A later one of higher priority moves the others back, and they are told so."""
    admission = Admission(EngineConfig())
    measure(admission.estimates, generation(), times=2)
    first, second = generation(), generation()
    admission.admit(first)
    admission.admit(second)
    assert news(second) == [Queued(position=1, estimated_wait=WHOLE_SECONDS)]
    high = generation(priority=Priority.HIGH)
    admission.admit(high)
    assert news(high) == [Queued(position=0, estimated_wait=0.0)]
    assert news(second)[-1] == Queued(position=2, estimated_wait=2 * WHOLE_SECONDS)
    assert admission.take() is high
    assert news(first)[-1].position == 0
    admission.tell()
    [told, moved_back, moved_up] = news(second)
    assert [told.position, moved_back.position, moved_up.position] == [1, 2, 1]


async def test_news_are_no_flood() -> None:
    """At one place, an estimate is told again when it changes much, and not without end."""
    admission = Admission(EngineConfig())
    measure(admission.estimates, generation(), times=2)
    waiting = generation()
    admission.admit(waiting)
    for _ in range(10):
        admission.tell()
    assert len(news(waiting)) == 1
    for turn in range(1000):
        admission.estimates.serving_at = float(2**40 * (turn % 2))
        admission.tell()
    assert 2 < len(news(waiting)) < 40


@pytest.mark.parametrize("length", [20, 60, 180])
async def test_a_longer_queue_is_not_told_more(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What all that wait hear in a second is bounded, however many they are."""
    now, seconds = [1000.0], length // 4  # Time for two rounds.
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    admission = Admission(EngineConfig(queue_capacity=length))
    waiting = [generation() for _ in range(length)]
    for each in waiting:
        admission.admit(each)
    first = sum(len(news(each)) for each in waiting)
    for tenth in range(10 * seconds):
        now[0] += 0.1
        admission.look_again()
        if tenth % 10 == 0:
            admission.take()
    told = sum(len(news(each)) for each in waiting) - first
    # The next one hears of each that is taken, and each of those behind it at least once.
    assert length - seconds - 2 < told < (8 + 1 + 1) * seconds


async def test_a_full_queue_says_when_a_place_is_free() -> None:
    """That is when the running one is likely to end."""
    admission = Admission(EngineConfig(queue_capacity=1))
    admission.admit(generation())
    running = admission.take()
    assert running is not None
    admission.admit(generation())
    with pytest.raises(QueueFull) as unknown:
        admission.admit(generation())
    assert unknown.value.retry_after > timedelta(0)
    measure(admission.estimates, generation(), times=2)
    running.state, running.stage = State.RUNNING, "denoise"
    with pytest.raises(QueueFull) as known:
        admission.admit(generation())
    assert timedelta(seconds=20) < known.value.retry_after < timedelta(seconds=24)


async def test_bytes_in_flight_are_bounded() -> None:
    """Pixels count from being accepted to the end, and the refusal says when there is room."""
    admission = Admission(EngineConfig(max_bytes_in_flight=2 * 64 * 64 * 3))
    measure(admission.estimates, generation(), times=2)
    first, second = generation(), generation()
    admission.admit(first)
    admission.admit(second)
    with pytest.raises(TooManyBytes) as refused:
        admission.admit(generation(16))
    assert refused.value.retry_after == timedelta(seconds=WHOLE_SECONDS)
    assert admission.bytes_in_flight == refused.value.bytes_in_flight == refused.value.limit
    admission.finish(first)
    admission.admit(generation(16))


async def test_one_client_may_have_so_many_and_others_as_many() -> None:
    """What waits, what runs and what is being encoded count until it ends."""
    admission = Admission(EngineConfig())
    two = ClientLimits(max_generations_per_client=2)
    measure(admission.estimates, generation(), times=2)
    admission.admit(generation(client="ann", limits=two))
    running = admission.take()
    assert running is not None
    running.state, running.stage = State.RUNNING, "denoise"
    admission.admit(generation(client="ann", limits=two))
    with pytest.raises(ClientLimitReached) as refused:
        admission.admit(generation(client="ann", limits=two))
    met = refused.value
    assert (met.client, met.limit) == ("ann", "max_generations_per_client")
    assert (met.held, met.bound, met.asked) == (2, 2, 1)
    assert met.retry_after is not None
    assert timedelta(seconds=20) < met.retry_after < timedelta(seconds=24)
    admission.admit(generation(client="bob", limits=two))
    admission.finish(running)
    admission.admit(generation(client="ann", limits=two))


async def test_one_client_may_let_so_many_wait() -> None:
    """There is room once the first of its own begins; what others let wait before it counts."""
    admission = Admission(EngineConfig())
    one = ClientLimits(max_queued_per_client=1)
    measure(admission.estimates, generation(), times=2)
    admission.admit(generation(client="bob"))
    admission.admit(generation(client="ann", limits=one))
    with pytest.raises(ClientLimitReached) as refused:
        admission.admit(generation(client="ann", limits=one, priority=Priority.HIGH))
    assert refused.value.limit == "max_queued_per_client"
    assert refused.value.retry_after == timedelta(seconds=WHOLE_SECONDS)
    assert admission.take() is not None
    ann = admission.take()
    assert ann is not None
    admission.admit(generation(client="ann", limits=one))


async def test_one_client_may_have_so_many_bytes() -> None:
    """What is too large by itself will never fit, and no time to try again is said."""
    admission = Admission(EngineConfig())
    limits = ClientLimits(max_bytes_per_client=2 * 64 * 64 * 3)
    measure(admission.estimates, generation(), times=2)
    for _ in range(2):
        admission.admit(generation(client="ann", limits=limits))
    with pytest.raises(ClientLimitReached) as refused:
        admission.admit(generation(client="ann", limits=limits))
    assert refused.value.limit == "max_bytes_per_client"
    assert refused.value.held == refused.value.bound == 2 * 64 * 64 * 3
    assert refused.value.retry_after == timedelta(seconds=WHOLE_SECONDS)
    admission.admit(generation(client="bob", limits=limits))
    with pytest.raises(ClientLimitReached) as too_large:
        admission.admit(generation(128, client="cid", limits=limits))
    assert too_large.value.retry_after is None


async def test_clients_take_turns_and_are_told_so() -> None:
    """The first of another client moves those back that were told a better place."""
    admission = Admission(EngineConfig())
    measure(admission.estimates, generation(), times=2)
    many = [generation(client="many") for _ in range(3)]
    for each in many:
        admission.admit(each)
    few = generation(client="few")
    admission.admit(few)
    assert news(few) == [Queued(position=1, estimated_wait=WHOLE_SECONDS)]
    assert [news(each)[-1].position for each in many] == [0, 2, 3]
    assert list(admission) == [many[0], few, *many[1:]]


async def test_a_limit_that_cannot_be_met_is_refused_by_measurements_alone() -> None:
    """What was measured of all that is before it counts; guesses never do; close calls may try."""
    admission = Admission(EngineConfig())
    measure(admission.estimates, generation())
    admission.admit(generation(timeout=1.0))
    measure(admission.estimates, generation())
    admission.tell()
    with pytest.raises(CannotMeetDeadline) as refused:
        admission.admit(generation(timeout=2 * WHOLE_SECONDS / 1.51))
    assert refused.value.estimate == timedelta(seconds=2 * WHOLE_SECONDS)
    assert len(admission) == 1
    admission.admit(generation(timeout=2 * WHOLE_SECONDS / 1.49))
    admission.admit(generation(128, timeout=2 * WHOLE_SECONDS))


def test_old_kinds_make_room() -> None:
    """Odd sizes without end cannot fill the memory."""
    durations = Durations(remembered=4)
    for kind in range(5000):
        durations.record(kind, 1.0)
    assert durations.median(0) is None
    assert durations.median(4999) == 1.0


def test_the_next_one_hears_at_once_of_one_that_was_taken_and_all_in_rounds() -> None:
    """What a queue costs grows with its length; whoever comes is foretold the same as ever."""
    admission = Admission(EngineConfig(queue_capacity=100))
    measure(admission.estimates, generation())
    waiting = [generation() for _ in range(12)]
    for each in waiting:
        admission.admit(each)
    admission.tell()
    known = [len(news(each)) for each in waiting]
    assert admission.take() is waiting[0]
    heard = [len(news(each)) - before for each, before in zip(waiting, known, strict=True)]
    assert heard == [0, 1, *[0] * 10]
    admission.admit(late := generation())
    [told] = news(late)
    assert told.position == 11
    assert told.estimated_wait == pytest.approx(12 * WHOLE_SECONDS, abs=0.1)
    admission.look_again()
    assert [len(news(each)) for each in waiting[2:]] == known[2:]
    admission._looked_at -= 12 / 8
    admission.look_again()
    assert [news(each)[-1].position for each in waiting[1:]] == list(range(11))

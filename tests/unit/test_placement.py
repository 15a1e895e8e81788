"""Which replica a call goes to."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from workflows.placement import DOUBTED_S, FORGOTTEN_S, KINS, Candidate, Placement, Wanted, kin_of


class Hand:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def __call__(self) -> float:
        return self.at_s


def replicas(*names: str, room: int = 2, machine: str = "") -> list[Candidate]:
    return [Candidate(name=name, room=room, machine=machine) for name in names]


def choose(placement: Placement, call_id: str, able: Sequence[Candidate]) -> str:
    chosen = placement.choose(Wanted(id=call_id), able)
    assert chosen is not None
    return chosen.name


def give(placement: Placement, call_id: str, able: Sequence[Candidate], **wanted: object) -> str:
    """Choose, and the replica takes the call."""
    asked = Wanted(id=call_id, **wanted)  # type: ignore[arg-type]
    chosen = placement.choose(asked, able)
    assert chosen is not None
    placement.sent(asked, chosen)
    return chosen.name


@pytest.mark.parametrize("count", [1, 2, 3, 8, 32])
def test_no_replica_gets_a_second_call_while_another_has_none(count: int) -> None:
    able, placement = replicas(*(f"r{number}" for number in range(count))), Placement()
    first = [give(placement, f"a{number}", able) for number in range(count)]
    second = [give(placement, f"b{number}", able) for number in range(count)]
    assert Counter(first) == Counter(second) == Counter(one.name for one in able)


def test_calls_that_come_together_are_spread_before_any_is_sent() -> None:
    able, placement = replicas("a", "b", "c"), Placement()
    assert {choose(placement, str(number), able) for number in range(3)} == {"a", "b", "c"}


def test_loads_stay_within_one_of_each_other_whatever_comes_and_goes() -> None:
    draw, able, placement = random.Random(7), replicas(*"abcde", room=9), Placement()
    held: list[tuple[str, str]] = []
    for number in range(2000):
        if held and draw.random() < 0.48:
            placement.over(*held.pop(draw.randrange(len(held))))
            continue
        loads = Counter({one.name: 0 for one in able}) + Counter(name for _, name in held)
        least = min(loads.get(one.name, 0) for one in able)
        name = give(placement, f"c{number}", able)
        assert loads.get(name, 0) == least
        held.append((f"c{number}", name))


def test_calls_of_another_director_count_as_far_as_they_are_known() -> None:
    able = [Candidate(name="a", calls=2, room=2), Candidate(name="b", calls=1, room=2)]
    assert give(Placement(), "x", able) == "b"


def test_a_call_for_what_is_being_made_joins_it() -> None:
    able, placement = replicas("a", "b"), Placement()
    maker = give(placement, "first", able, key="k")
    assert give(placement, "twin", able, key="k") == maker, "one run, not two"
    assert give(placement, "third", able, key="k") != maker, "it has no room for a third call"
    placement.over("first", maker)
    placement.over("twin", maker)
    assert give(placement, "later", able, key="") == maker, "nothing is being made any more, and it is idle"


def test_what_does_not_fit_goes_elsewhere_or_nowhere() -> None:
    able, placement = replicas("a", "b"), Placement()
    give(placement, "busy", able)
    assert all(give(placement, f"x{number}", able, avoid=("a",)) == "b" for number in range(3))
    assert placement.choose(Wanted(id="y", avoid=("a", "b")), able) is None


def test_an_idle_replica_that_has_done_such_work_goes_first_and_a_busy_one_does_not() -> None:
    able, placement = replicas("a", "b", "c"), Placement()
    wide = give(placement, "1", able, kin="832x480x81")
    tall = give(placement, "2", able, kin="480x832x81")
    placement.over("2", tall)
    placement.over("1", wide)
    for number in range(4):
        assert give(placement, f"w{number}", able, kin="832x480x81") == wide
        placement.over(f"w{number}", wide)
    give(placement, "3", able, kin="832x480x81")
    assert give(placement, "4", able, kin="832x480x81") != wide, "an idle GPU is worth more"


def test_a_replica_is_thought_to_be_prepared_for_the_latest_kinds_only() -> None:
    able, placement = replicas("a"), Placement()
    for number in range(KINS + 1):
        give(placement, f"{number}", able, kin=f"kin {number}")
        placement.over(f"{number}", "a")
    both = replicas("a", "b")
    assert give(placement, "old", both, kin="kin 0") == "b", "nobody has it; this one was idle for longer"
    placement.over("old", "b")
    assert give(placement, "new", both, kin=f"kin {KINS}") == "a"


def test_a_machine_that_has_the_file_is_better_than_one_that_has_not() -> None:
    near, far = replicas("a", "b", machine="near"), replicas("c", "d", machine="far")
    placement = Placement()
    first = give(placement, "1", near, kin="video")
    give(placement, "0", [one for one in near if one.name == first])
    assert give(placement, "2", [*far, *near], kin="video") in {"a", "b"} - {first}


def test_a_replica_that_did_not_take_the_call_is_tried_last() -> None:
    able, placement = replicas("dead", "b", "c"), Placement()
    give(placement, "1", able[1:])
    give(placement, "2", able[1:])
    tries = [choose(placement, "x", able) for _ in range(4)]
    assert tries[0] == "dead", "it has nothing to do, as far as anybody knows"
    assert set(tries[1:3]) == {"b", "c"}
    assert tries[3] == "dead", "all were asked: from the beginning"


def test_one_that_cannot_be_reached_is_left_alone_for_a_while() -> None:
    clock = Hand()
    able, placement = replicas("away", "b"), Placement(clock=clock)
    placement.doubt("away")
    assert [give(placement, f"{number}", able) for number in range(3)] == ["b", "b", "b"]
    clock.at_s = DOUBTED_S
    assert give(placement, "4", able) == "away"
    placement.doubt("away")
    assert give(placement, "5", able[:1]) == "away", "there is no other; and it took it"
    assert give(placement, "6", able) == "away"


def test_a_call_that_went_before_it_was_sent_counts_for_a_while_only() -> None:
    clock = Hand()
    able, placement = replicas("a", "b"), Placement(clock=clock)
    gone = choose(placement, "gone", able)
    assert give(placement, "1", able) != gone
    clock.at_s = FORGOTTEN_S
    assert give(placement, "2", able) == gone


def test_a_call_that_is_over_before_it_was_told_to_be_sent_leaves_nothing() -> None:
    able, placement = replicas("a", "b"), Placement()
    wanted = Wanted(id="quick")
    chosen = placement.choose(wanted, able)
    assert chosen is not None
    placement.over("quick", chosen.name)
    placement.sent(wanted, chosen)
    placement.over("quick", chosen.name)
    others = {give(placement, f"{number}", able) for number in range(2)}
    assert others == {"a", "b"}


def test_the_end_of_an_earlier_try_is_not_the_end_of_the_call() -> None:
    able, placement = replicas("a", "b"), Placement()
    first, second = choose(placement, "x", able), choose(placement, "x", able)
    assert first != second
    placement.over("x", first)
    assert give(placement, "y", able) == first, "x is at the other one"


def test_each_seat_keeps_a_replica_of_its_own() -> None:
    able, placement = replicas("a", "b", "c"), Placement()
    first = {seat: give(placement, f"first {seat}", able, seat=seat) for seat in (2, 0, 1)}
    assert sorted(first.values()) == ["a", "b", "c"]
    for number, seat in enumerate((1, 1, 0, 2)):
        assert give(placement, f"again {number}", able, seat=seat) == first[seat], "whatever else there is"


def test_two_seats_share_a_replica_only_until_there_is_another() -> None:
    placement = Placement()
    assert give(placement, "1", replicas("a"), seat=0) == give(placement, "2", replicas("a"), seat=1) == "a"
    for number in range(3):
        assert give(placement, f"x{number}", replicas("a", "new"), seat=0) == "a"
        assert give(placement, f"y{number}", replicas("a", "new"), seat=1) == "new"


def test_a_seat_whose_replica_is_gone_or_to_be_avoided_gets_another() -> None:
    able, placement = replicas("a", "b"), Placement()
    assert give(placement, "1", able, seat=0) == "a"
    assert give(placement, "2", able, seat=0, avoid=("a",)) == "b"
    placement.keep(replicas("b"))
    assert give(placement, "3", replicas("b", "c"), seat=1) == "c"
    assert give(placement, "4", replicas("b", "c"), seat=0) == "b"


def test_a_party_meets_on_one_machine_and_seats_change_places_for_it() -> None:
    able = [Candidate(name=name, machine=name[0]) for name in ("a1", "b1", "a2", "b2")]
    placement = Placement()
    seats = {seat: give(placement, f"first {seat}", able, seat=seat) for seat in range(4)}
    for seat, name in seats.items():
        placement.over(f"first {seat}", name)
    lead = give(placement, "lead", able, seat=0, party="p")
    helper = give(placement, "help", able, seat=1, party="p")
    assert (seats[0], seats[1], lead, helper) == ("a1", "b1", "a1", "a2")
    assert give(placement, "other", able, seat=2) == "b1", "they have changed places"
    assert give(placement, "another", able, seat=3) == "b2"


def test_two_who_place_calls_do_not_begin_with_the_same_replica() -> None:
    able = replicas(*"abcdefgh")
    firsts = {give(Placement(draw=random.Random(seed).random), "1", able) for seed in range(20)}
    assert len(firsts) > 3


def test_what_is_known_of_replicas_that_are_gone_is_forgotten() -> None:
    placement = Placement()
    give(placement, "1", replicas("old", machine="m"), kin="k")
    placement.over("1", "old")
    placement.keep(replicas("new"))
    assert give(placement, "2", replicas("other", "old"), kin="k") == "other"


@pytest.mark.parametrize(("payload", "kin"), [
    ({"width_px": 832, "height_px": 480, "frames": 81, "prompt": "a"}, "832x480x81"),
    ({"source": {"key": "abc", "uri": "u"}, "width_px": 1}, "abc"), ({"text": "a caption"}, "")])
def test_what_a_node_leaves_at_its_replica(payload: dict[str, object], kin: str) -> None:
    assert kin_of(payload) == kin  # type: ignore[arg-type]

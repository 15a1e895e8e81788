"""Cards that share too few GPUs: single divisions, and hours of them beside a model of a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.sharing import gpus_taken
from workflows.division import Claim, Division, Pace, Room, divide
from workflows.scaling import Backlog, Rule, enough

PACE = Pace(load_s=30, yield_s=5)
RULE = Rule(least=0, most=8, finish_within_s=600, idle_s=300)
LOOK_S = 2.0
TURN_S = 180.0


def work(ready: int = 0, running: int = 0, coming: int = 0, seconds: float = 100.0, interactive: int = 0) -> Backlog:
    return Backlog(ready=ready, running=running, coming=coming, seconds=seconds, interactive=interactive)


def claim(card: str, backlog: Backlog, running: int = 0, *, gpus: float = 1.0, starting: int = 0,
          rule: Rule = RULE) -> Claim:
    return Claim(card=card, backlog=backlog, rule=rule, gpus=gpus, running=running, held=running + starting)


def walk(*moments: tuple[float, list[Claim]], gpus: float = 1.0) -> list[dict[str, int]]:
    """What is wanted, one moment after the other."""
    last, found = Division(), []
    for at_s, claims in moments:
        last = divide(claims, last, room=Room(gpus=gpus), pace=PACE, at_s=at_s)
        found.append(last.wanted)
    return found


# -- one division ---------------------------------------------------------------------------------------------


def test_nothing_is_said_where_all_fits_what_is_wanted_and_what_is_held() -> None:
    both = [claim("draw", work(ready=20), 4), claim("film", work(ready=6), 2)]
    assert walk((0, both), gpus=6) == [{}]
    assert walk((0, [claim("draw", work(ready=900), 4, starting=4)]), gpus=4) == [{}]  # alone it may wait for GPUs


def test_idle_replicas_go_at_once_to_work_that_waits_and_only_as_many_as_it_needs() -> None:
    assert walk((0, [claim("draw", work(), 1), claim("film", work(ready=3))])) == [{"draw": 0, "film": 1}]
    assert walk((0, [claim("draw", work(), 4), claim("film", work(ready=8))]), gpus=4) == [{"draw": 2, "film": 2}]


def test_idle_replicas_for_which_more_is_coming_stay_a_moment() -> None:
    now = [claim("draw", work(coming=2), 1), claim("film", work(ready=3))]
    assert walk((0, now), (4, now), (5, now)) == [
        {"draw": 1, "film": 0}, {"draw": 1, "film": 0}, {"draw": 0, "film": 1}]


def test_of_idle_replicas_those_for_which_nothing_is_coming_go_first() -> None:
    idle = [claim("draw", work(), 1), claim("write", work(coming=1), 1)]
    assert walk((0, [*idle, claim("film", work())]), (9, [*idle, claim("film", work(ready=3))]), gpus=2) == [
        {}, {"draw": 0, "film": 1, "write": 1}]


def test_gpus_are_divided_in_proportion_to_the_seconds_of_work_and_each_card_has_one() -> None:
    many = [claim("draw", work(ready=600)), claim("film", work(ready=200)), claim("write", work(ready=1, seconds=1))]
    assert walk((0, many), gpus=9) == [{"draw": 6, "film": 2, "write": 1}]


def test_replicas_of_several_gpus_and_lasting_ones_are_counted() -> None:
    big = claim("film", work(ready=900), gpus=4)
    small = claim("draw", work(ready=900), gpus=0.5)
    told = divide([big, small], Division(), room=Room(gpus=6, taken=(0.6,)), pace=PACE, at_s=0)
    assert told.wanted == {"film": 1, "draw": 2}  # one GPU is left; beside the 0.6 no half has room


def test_a_waiting_card_gets_its_first_replica_from_one_with_several_before_the_turn_is_over() -> None:
    alone, both = [claim("draw", work(ready=900), 4)], [claim("draw", work(ready=900), 4), claim("film", work(ready=1))]
    assert walk((0, alone), (10, both), (31, both), gpus=4) == [
        {}, {"draw": 4, "film": 0}, {"draw": 3, "film": 1}]


@pytest.mark.parametrize(("draw", "film", "turn_s"), [
    (work(ready=90), work(ready=90), 180), (work(ready=90), work(ready=60), 270), (work(ready=90), work(ready=9), 540),
    (work(ready=9), work(ready=90), 180), (work(ready=90), work(ready=1, interactive=1), 180),
    (work(ready=2, interactive=2), work(ready=90), 540), (work(ready=3, seconds=10), work(ready=90), 210),
], ids=["equal", "half as much more", "far more", "less", "interactive work waits", "batch work waits", "nearly done"])
def test_a_turn_is_as_long_as_the_work_is_more(draw: Backlog, film: Backlog, turn_s: float) -> None:
    both = [claim("draw", draw, 1), claim("film", film)]
    moments = list(range(0, 1000, 10))
    told = walk(*((at_s, both) for at_s in moments))
    assert next(at_s for at_s, one in zip(moments, told, strict=True) if one["film"]) == turn_s


def test_gpus_are_divided_anew_once_in_a_turn() -> None:
    draw, film = work(ready=90), work(ready=90)
    told = walk((0, [claim("draw", draw, 2), claim("film", film, 2)]),
                *((at_s, [claim("draw", work(ready=300), 2), claim("film", film, 2)]) for at_s in (179, 180)),
                *((at_s, [claim("draw", draw, 3), claim("film", film, 1)]) for at_s in (190, 369, 370)), gpus=4)
    assert [one["draw"] for one in told] == [2, 2, 3, 3, 3, 2]


def test_a_model_that_never_comes_has_had_its_turn_too() -> None:
    both = [claim("draw", work(ready=900)), claim("film", work(ready=900))]
    assert walk((0, both), (500, both), (600, both)) == [
        {"draw": 1, "film": 0}, {"draw": 1, "film": 0}, {"draw": 0, "film": 1}]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 4), st.integers(0, 9), st.floats(0, 1e4),
                          st.sampled_from([0.3, 0.5, 1.0, 2.0])), min_size=1, max_size=4), st.integers(2, 9))
def test_a_division_fits_and_leaves_no_gpu_to_nobody(cards: list[tuple[int, int, int, float, float]],
                                                     gpus: int) -> None:
    claims = [claim(str(number), work(ready, min(ready, running), coming, seconds), running, gpus=share)
              for number, (ready, running, coming, seconds, share) in enumerate(cards)]
    told = divide(claims, Division(), room=Room(gpus=gpus), pace=PACE, at_s=0).wanted
    if not told:
        return
    taken = [one.gpus for one in claims for _ in range(told[one.card])]
    assert gpus_taken(taken) <= gpus
    for one in claims:
        assert told[one.card] <= RULE.most
        assert told[one.card] >= enough(one.backlog, RULE) or gpus_taken([*taken, one.gpus]) > gpus


# -- hours of divisions ---------------------------------------------------------------------------------------


@dataclass
class Card:
    """A model's work and replicas in the cluster that is played."""

    seconds: float
    ready: int = 0
    coming: int = 0
    interactive: bool = False
    loading: list[float] = field(default_factory=list)
    """Seconds left of each load."""
    working: list[float] = field(default_factory=list)
    """Seconds left of what each loaded replica does; 0: nothing."""
    loads: int = 0
    done_s: list[float] = field(default_factory=list)


class Cluster:
    """GPUs on which replicas load and work second by second; a call that is cut off is as it was before."""

    def __init__(self, gpus: int, cards: dict[str, Card], load_s: float = 30.0) -> None:
        self.gpus, self.cards, self.load_s = gpus, cards, load_s
        self.at_s, self.idle_s = 0.0, 0.0
        self.last = Division()
        self.changes: list[float] = []

    def backlog(self, card: Card) -> Backlog:
        running = sum(left > 0 for left in card.working)
        return work(card.ready, running, card.coming, card.seconds, (card.ready + running) * card.interactive)

    def look(self) -> None:
        claims = [claim(name, self.backlog(card), len(card.working), starting=len(card.loading))
                  for name, card in self.cards.items()]
        before = self.last.wanted
        self.last = divide(claims, self.last, room=Room(gpus=self.gpus), pace=PACE, at_s=self.at_s)
        if self.last.wanted != before:
            self.changes.append(self.at_s)
        for one in claims:
            own = max(enough(one.backlog, RULE), one.held)  # Serve's side with nothing told; idle_s is far away
            self.resize(self.cards[one.card], self.last.wanted.get(one.card, own))

    def resize(self, card: Card, replicas: int) -> None:
        while len(card.loading) + len(card.working) > replicas:
            if card.loading:
                card.loading.pop()
            else:
                card.ready += card.working.pop() > 0
        taken = sum(len(one.loading) + len(one.working) for one in self.cards.values())
        started = min(replicas - len(card.loading) - len(card.working), self.gpus - taken)
        card.loading += [self.load_s] * started
        card.loads += started

    def second(self) -> None:
        self.at_s += 1
        for card in self.cards.values():
            card.loading = [left - 1 for left in card.loading]
            card.working += [0.0 for left in card.loading if left <= 0]
            card.loading = [left for left in card.loading if left > 0]
            for number, left in enumerate(card.working):
                if left == 1:
                    card.done_s.append(self.at_s)
                if left <= 1 and card.ready:
                    card.ready -= 1
                    card.working[number] = card.seconds
                else:
                    card.working[number] = max(left - 1, 0.0)
        if any(card.ready for card in self.cards.values()):
            busy = sum(len(card.loading) + sum(left > 0 for left in card.working) for card in self.cards.values())
            self.idle_s += self.gpus - busy

    def play(self, until_s: float, feed: dict[str, float] | None = None) -> None:
        """`feed`: seconds between two more for a card."""
        while self.at_s < until_s:
            if self.at_s % LOOK_S == 0:
                self.look()
            for name, every_s in (feed or {}).items():
                self.cards[name].ready += self.at_s % every_s == 0
            self.second()


def test_a_films_clips_follow_its_keyframes_on_one_gpu_after_one_load() -> None:
    draw, film = Card(seconds=10, ready=8), Card(seconds=40, coming=8)
    cluster = Cluster(1, {"draw": draw, "film": film})
    while len(film.done_s) < 8:
        before = len(draw.done_s)
        cluster.play(cluster.at_s + 1)
        fresh = len(draw.done_s) - before
        film.coming, film.ready = film.coming - fresh, film.ready + fresh
        assert cluster.at_s < 1000
    assert (draw.loads, film.loads) == (1, 1)
    assert cluster.at_s <= 30 + 80 + 30 + 320 + 4 * LOOK_S


def test_two_full_backlogs_take_turns_on_one_gpu_that_are_long_against_a_load() -> None:
    draw, film = Card(seconds=10, ready=5000), Card(seconds=60, ready=5000 // 6)
    cluster = Cluster(1, {"draw": draw, "film": film})
    hours_s = 4 * 3600
    cluster.play(hours_s)
    changes = [later - sooner for sooner, later in zip(cluster.changes, cluster.changes[1:], strict=False)]
    assert min(changes) >= TURN_S
    assert (draw.loads + film.loads) * cluster.load_s <= 0.15 * hours_s
    assert cluster.idle_s <= 0.05 * hours_s
    for card in (draw, film):
        assert max(later - sooner for sooner, later in zip(card.done_s, card.done_s[1:], strict=False)) < 3 * TURN_S
    spent = [len(card.done_s) * card.seconds for card in (draw, film)]
    assert min(spent) > 0.3 * hours_s


def test_work_that_never_ends_starves_nobody() -> None:
    """Interactive pictures come faster than they are drawn; the clips of a batch come to their turn all the same."""
    draw, film = Card(seconds=10, interactive=True), Card(seconds=30, ready=40)
    cluster = Cluster(1, {"draw": draw, "film": film})
    cluster.play(2 * 3600, feed={"draw": 8})
    assert len(film.done_s) >= 20
    assert len(draw.done_s) * draw.seconds >= 2 * len(film.done_s) * film.seconds


def test_a_single_interactive_picture_waits_no_longer_than_the_shortest_turn() -> None:
    draw, film = Card(seconds=10, interactive=True), Card(seconds=60, ready=900)
    cluster = Cluster(1, {"draw": draw, "film": film})
    cluster.play(2 * 3600, feed={"draw": 600})
    waits = [done_s % 600 for done_s in draw.done_s]
    assert len(waits) == 12
    assert max(waits) <= TURN_S + 30 + 10 + 3 * LOOK_S + 30


def test_several_gpus_are_divided_without_flapping_while_the_work_goes_down() -> None:
    draw, film = Card(seconds=20, ready=900), Card(seconds=60, ready=100)
    cluster = Cluster(4, {"draw": draw, "film": film})
    cluster.play(2 * 3600 + 600)
    assert (len(draw.done_s), len(film.done_s)) == (900, 100)
    assert draw.loads + film.loads <= 16
    assert max(draw.done_s + film.done_s) <= (900 * 20 + 100 * 60) / 4 * 1.1 + 4 * 30

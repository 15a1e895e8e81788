"""What may go, decided from lists: nothing wanted, nothing young, nothing strange."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.upkeep.retention import CONDEMNED, File, Kind, Wanted, decide

KEY, OTHER = "3f" + "0" * 30, "3f" + "1" * 30
NOW_S, LATE_S = 1000.0, 2000.0
KEYS = st.sampled_from([f"{number:02x}" * 16 for number in range(6)])
NAMES = st.sampled_from(["manifest.json", CONDEMNED, "0123456789abcdef.mp4", "fedcba9876543210.png"])


def stored(key: str, name: str = "manifest.json", modified_s: float | None = 0.0) -> File:
    return File(path=f"{key[:2]}/{key}/{name}", size_bytes=7, modified_s=modified_s)


def none_wanted() -> Wanted:
    return Wanted(keys=frozenset(), open_keys=frozenset())


def test_what_is_mentioned_stays_and_the_rest_goes_with_all_its_files() -> None:
    files = [stored(KEY), stored(KEY, "0123456789abcdef.mp4"), stored(OTHER), stored(OTHER, "0123456789abcdef.mp4")]
    plan = decide(files, Wanted(keys={KEY}, open_keys=set()), before_s=NOW_S)
    assert [(bundle.key, len(bundle.files)) for bundle in plan.bundles] == [(OTHER, 2)]
    assert plan.kept == 1
    assert plan.goes() == {Kind.VIDEO: (1, 14)}


def test_one_young_file_keeps_all_under_its_key_and_a_file_without_a_time_is_never_old() -> None:
    assert decide([stored(KEY), stored(KEY, "a.mp4", LATE_S)], none_wanted(), before_s=NOW_S).bundles == ()
    assert decide([stored(KEY, modified_s=None)], none_wanted(), before_s=NOW_S).bundles == ()


def test_checkpoints_stay_while_their_node_is_open_and_temporary_files_go_wherever_they_are() -> None:
    tmp = f".manifest.json.{'a' * 32}.tmp"
    files = [File(path=f"checkpoints/{key}/0001-ab.ckpt", size_bytes=5, modified_s=0.0) for key in (KEY, OTHER)]
    plan = decide([*files, stored(KEY, tmp), stored(OTHER, tmp, LATE_S)], Wanted(keys={KEY}, open_keys={KEY}),
                  before_s=NOW_S)
    assert [file.path for file in plan.checkpoints] == [f"checkpoints/{OTHER}/0001-ab.ckpt"]
    assert [file.path for file in plan.temporary] == [f"3f/{KEY}/{tmp}"]


def test_files_of_others_are_counted_and_left_alone() -> None:
    others = ["notes.txt", f"ab/{KEY}/manifest.json", "3f/short/manifest.json", f"3f/{KEY}/deep/er", "checkpoints/x"]
    plan = decide([File(path=path, size_bytes=1, modified_s=0.0) for path in others], none_wanted(), before_s=NOW_S)
    assert (plan.strange, plan.bundles, plan.checkpoints) == (len(others), (), ())


@settings(max_examples=60, deadline=None)
@given(st.sets(st.tuples(KEYS, NAMES)), st.dictionaries(KEYS, st.floats(0, 3000)), st.sets(KEYS))
def test_nothing_wanted_or_young_goes_and_everything_else_does(
    written: set[tuple[str, str]], times: dict[str, float], wanted: set[str],
) -> None:
    files = [stored(key, name, times.get(key, 0.0)) for key, name in written]
    plan = decide(files, Wanted(keys=wanted, open_keys=set()), before_s=NOW_S)
    gone = {bundle.key for bundle in plan.bundles}
    keys = {key for key, _ in written}
    both = {key for key in keys if {(key, "manifest.json"), (key, CONDEMNED)} <= written}
    only_mark = {key for key in keys if {name for it, name in written if it == key} == {CONDEMNED}}
    old = {key for key in keys if times.get(key, 0.0) < NOW_S} | only_mark
    # What is marked and has a manifest again was written anew in between: its mark goes first.
    assert gone == old - wanted - both
    pardoned = {bundle.key for bundle in plan.pardoned}
    assert pardoned == {key for key, name in written if name == CONDEMNED} - gone

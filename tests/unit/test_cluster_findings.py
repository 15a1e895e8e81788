"""`reelray doctor` of a cluster: each thing that can be wrong with a node is a finding that says what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serve_app.cluster_findings import GpuFacts, NodeFacts, NodeReport, StoreTimes, judge

FACTS = NodeFacts(versions={"python": "3.11.7", "torch": "2.9.0+cpu", "reelray": "1.0"}, seen_without_gpu=None,
                  store=StoreTimes(write_ms=3, read_ms=2, delete_ms=1), store_is_shared=True, database_ms=1.5,
                  skew_s=0.002, skew_error_s=0.001, ffmpeg="7.0")
GPU = GpuFacts(assigned=("0",), seen=1, name="H100", total_gb=80, free_gb=79, cap_holds=True)
NODE = NodeReport(name="a", gpus=0, facts=FACTS)
GPU_NODE = NodeReport(name="b", gpus=1, facts=replace(FACTS, seen_without_gpu=0), gpu=GPU)


def bad(*reports: NodeReport) -> list[tuple[str, str, str]]:
    return [(one.level, one.what, one.text) for one in judge(reports) if one.level != "ok"]


def test_a_cluster_in_order_has_a_line_per_node_and_one_for_all() -> None:
    findings = judge([NODE, GPU_NODE])
    assert [finding.level for finding in findings] == ["ok"] * 3
    assert "store 3/2/1 ms write/read/delete, database 1.5 ms, clock +2 ms, ffmpeg 7.0" in findings[0].text
    assert "H100 79.0 of 80.0 GB free" in findings[1].text
    assert findings[2].text == "the same on all 2 nodes"


@pytest.mark.parametrize(("changes", "level", "what", "said"), [
    ({"store": None, "store_error": "PermissionError: no"}, "fail", "store", "cannot use it: PermissionError: no"),
    ({"store_is_shared": False}, "fail", "store", "does not see what this machine wrote"),
    ({"store": StoreTimes(write_ms=4000, read_ms=2, delete_ms=1)}, "note", "store", "longer than 1000 ms"),
    ({"database_ms": None, "database_error": "OperationalError: refused"}, "fail", "database", "need Postgres"),
    ({"database_ms": 300.0}, "note", "database", "300 ms per question"),
    ({"skew_s": -2.0}, "note", "clock", "2.0 s behind the database"),
    ({"skew_s": 9.0}, "fail", "clock", "9.0 s ahead of the database"),
    ({"skew_s": 9.0, "skew_error_s": 8.9}, None, "", ""),
    ({"skew_s": None}, None, "", ""),
    ({"ffmpeg": "", "ffmpeg_error": "ImportError: no"}, "fail", "ffmpeg", "install imageio-ffmpeg there"),
    ({"seen_without_gpu": 2}, "fail", "GPU", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1"),
])
def test_what_is_wrong_with_a_node_is_said_with_its_name(
    changes: dict[str, object], level: str | None, what: str, said: str,
) -> None:
    found = bad(NODE, replace(NODE, name="bad", facts=replace(FACTS, **changes)))
    if level is None:
        assert found == []
    else:
        ((found_level, found_what, text),) = found
        assert (found_level, found_what) == (level, what)
        assert text.startswith("bad")
        assert said in text


@pytest.mark.parametrize(("gpu", "level", "said"), [
    (replace(GPU, seen=0), "fail", "Ray gave 0 and torch sees 0"),
    (replace(GPU, assigned=("0",), seen=4), "fail", "Ray gave 0 and torch sees 4"),
    (replace(GPU, cap_holds=False), "fail", "took more memory than its share"),
    (replace(GPU, free_gb=20), "note", "60.0 of 80.0 GB are in use"),
    (None, "note", "all are in use"),
])
def test_what_is_wrong_with_a_gpu_is_said(gpu: GpuFacts | None, level: str, said: str) -> None:
    ((found_level, what, text),) = bad(replace(GPU_NODE, gpu=gpu))
    assert (found_level, what) == (level, "GPU")
    assert said in text


def test_versions_that_differ_are_named_with_their_nodes_and_builds_of_one_version_are_not() -> None:
    other = replace(FACTS, versions={"python": "3.11.7", "torch": "2.9.0+cu128", "reelray": "1.1"})
    ((level, what, text),) = bad(NODE, replace(NODE, name="b", facts=other), replace(NODE, name="c"))
    assert (level, what) == ("fail", "versions")
    assert text.startswith("reelray: 1.0 on a, c; 1.1 on b; use one image")


def test_a_node_that_ran_nothing_fails_and_hides_no_other() -> None:
    found = bad(NODE, replace(NODE, name="dead", facts=None, error="no answer within 120 s"))
    assert [(level, what) for level, what, _ in found] == [("fail", "node dead")]

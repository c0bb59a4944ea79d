import json

import pytest

from scripts.checks.containers import healthy_after_s, table

STARTED = "2026-11-22T14:00:00.123456789Z"


@pytest.mark.parametrize(
    ("log", "seconds"),
    [
        ([{"ExitCode": 0, "End": "2026-11-22T15:00:02.5+01:00"}], 2.4),
        ([{"ExitCode": 1, "End": "2026-11-22T14:00:01Z"}, {"ExitCode": 0, "End": "2026-11-22T14:00:03Z"}], 2.9),
        ([{"ExitCode": 1, "End": "2026-11-22T14:00:01Z"}], None),
        (None, None),
    ],
)
def test_container_is_healthy_at_its_first_successful_check(log, seconds):
    assert healthy_after_s({"StartedAt": STARTED, "Health": {"Log": log}}) == seconds


def test_container_without_a_health_check_has_no_time():
    assert healthy_after_s({"StartedAt": STARTED}) is None


def test_table_has_the_slowest_and_largest_container_of_each_service(tmp_path):
    rows = [("api", 120, 99, 1.5), ("job", 1200, 50, None), ("job", 1200, 2000, 2.5), ("models", 9, None, None)]
    names = ("service", "image_mb", "memory_mb", "healthy_s")
    notes = tmp_path / "notes"
    notes.write_text(
        "".join(json.dumps({"pattern": "04", **dict(zip(names, row, strict=True))}) + "\n" for row in rows)
    )
    assert table(notes) == [
        ["04", "api", "120 MB", "99 MB", "1.5 s"],
        ["04", "job", "1,200 MB", "2,000 MB", "2.5 s"],
        ["04", "models", "9 MB", "", ""],
    ]

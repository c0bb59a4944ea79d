"""The arithmetic of growth: laws and bends, and the report that states them."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from scripts.benchmarks import growth
from scripts.benchmarks.curves import bend_of, law
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.runs import Profile

DECADES = np.array([10.0**exponent for exponent in range(1, 7)])
JITTER = np.array([1.04, 0.97, 1.02, 0.96, 1.03, 0.98])


@pytest.mark.parametrize(
    ("sizes", "values", "text", "bend"),
    [
        pytest.param(DECADES, 3 * JITTER, "constant (exponent 0.00)", None, id="constant, with noise"),
        pytest.param(DECADES, 2 * DECADES, "grows with the exponent 1.00", None, id="proportional"),
        pytest.param(DECADES, 9 / np.sqrt(DECADES), "falls with the exponent -0.50", None, id="falling"),
        pytest.param(
            np.array([1.0, 2, 4, 8, 16, 32]),
            2 + 0.5 * np.array([1.0, 2, 4, 8, 16, 32]),
            "2 ms and 0.5 ms for each of the jobs; the second part is the larger one from 4 on",
            4,
            id="a fixed cost and one of each",
        ),
        pytest.param(
            DECADES,
            5 * JITTER * np.maximum(1, DECADES / 1e4) ** 0.6,
            "constant (exponent -0.01) up to 10,000 jobs, then grows with the exponent 0.60",
            10_000,
            id="constant up to a bend",
        ),
        pytest.param(DECADES[:2], np.array([4.0, 8]), "grows with the exponent 0.30", None, id="two sizes"),
    ],
)
def test_the_law_of_a_curve_is_found(sizes, values, text, bend):
    assert law(sizes, values, "ms", "jobs") == text
    assert bend_of(sizes, values, "ms") == (None if bend is None else pytest.approx(bend))


def test_the_report_states_what_was_measured_and_what_was_not(tmp_path):
    run = growth.Growth(pattern=PATTERNS["04"])
    for rows in (10_000, 100_000):
        run.add_at(growth.ROWS, rows, {"SQLite": (80_000, "rows/s"), "job's peak memory": (0, "MB")})
    run.skip("MariaDB: not installed")
    paths = growth.write([run], Profile.SHORT, 60, tmp_path)
    text = (tmp_path / "growth.md").read_text()
    assert "| 100,000 | 80,000 rows/s | 0 MB |" in text
    assert "- **SQLite**: constant (exponent 0.00)." in text
    assert "job's peak memory**" not in text  # zeros have no logarithm
    assert "Skipped: MariaDB: not installed." in text
    assert ET.parse(tmp_path / "growth_rows.svg").getroot().tag.endswith("svg")
    assert json.loads(paths[1].read_text())["patterns"]["04"][0]["at"] == 10_000

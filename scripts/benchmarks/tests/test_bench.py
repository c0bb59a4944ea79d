"""The part of `make bench` that does not measure: figures, tables, plots, the machine."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from scripts.benchmarks import figures
from scripts.benchmarks.__main__ import BENCHES
from scripts.benchmarks.figures import Figure, markdown, of_load, report
from scripts.benchmarks.load import Load
from scripts.benchmarks.report import SHORT, write
from scripts.benchmarks.side_by_side import ENTRANCES, SideBySide
from scripts.devstack.machine import described, libraries
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.stack import ROOT


def test_every_pattern_has_a_benchmark_and_an_entrance():
    assert BENCHES.keys() == SHORT.keys() == PATTERNS.keys()
    assert {entrance.number for entrance in ENTRANCES} == PATTERNS.keys()


@pytest.mark.parametrize("number", BENCHES)
def test_the_options_of_the_short_form_are_known(number):
    command = [sys.executable, "-m", f"scripts.benchmarks.{BENCHES[number]}", *SHORT[number], "--json", "x", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(re.findall("--[a-z-]+", " ".join(SHORT[number]))) <= set(re.findall("--[a-z-]+", done.stdout))


def figure(value, **bounds):
    return Figure(group="Ratios", what="ours to theirs", measure="ratio", value=value, unit="x", **bounds)


@pytest.mark.parametrize(
    ("value", "bounds", "is_met", "text"),
    [
        (0.5, {}, None, "0.5 x"),
        (0.5, {"at_least": 0.5}, True, "0.5 x"),
        (0.4999, {"at_least": 0.5}, False, "0.5 x MISSED"),
        (2, {"at_most": 1.5}, False, "2 x MISSED"),
        (12345.6, {"at_least": 1, "at_most": 20_000}, True, "12,346 x"),
    ],
)
def test_a_missed_target_is_said(value, bounds, is_met, text):
    assert figure(value, **bounds).is_met is is_met
    assert figure(value, **bounds).text == text


LOAD = Load(latencies=[0.001 * number for number in range(1, 101)], failed=0, seconds=2)


def test_figures_stand_in_one_table_for_each_group(capsys, tmp_path):
    found = [*of_load("Requests", "ours", LOAD, LOAD), *of_load("Requests", "theirs", Load([0.1], 3, 1))]
    found.append(figure(0.2, at_least=0.5))
    assert markdown(found) == (
        "\n### Requests\n\n|  | rate | p50 | p99 | failed | target |\n| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| ours | 50 /s | 51 ms | 100 ms |  |  |\n| theirs | 1 /s | 100 ms | 100 ms | 3 MISSED | at most 0 |\n"
        "\n### Ratios\n\n|  | ratio | target |\n| --- | ---: | ---: |\n"
        "| ours to theirs | 0.2 x MISSED | at least 0.5 |\n"
    )
    report(found, tmp_path / "figures.json")
    assert "0.2 x MISSED" in capsys.readouterr().out
    assert figures.read(tmp_path / "figures.json") == found


@pytest.fixture
def together():
    slow = Load([latency * 10 for latency in LOAD.latencies], 0, 2)
    loads = {(entrance.what, n): [LOAD, slow] for entrance in ENTRANCES for n in (1, 4, 16, 64)}
    return SideBySide(loads, {0: [LOAD], 1: [LOAD], 2: [slow], 3: [slow]}, {"06 proxy": 72.5})


def test_the_report_has_everything(together, tmp_path):
    jobs = [
        Figure(group="Jobs", what=f"{count} workers, model server", measure="rate", value=100 * count, unit="/s")
        for count in (1, 2)
    ]
    paths = write(together, {"03": jobs}, "short", 100, tmp_path)
    text = (tmp_path / "bench.md").read_text()
    assert described() in text
    assert "| 06 proxy | 72.5 MB |" in text
    assert "## 03 Asynchronous" in text
    assert f"onnxruntime {libraries()['onnxruntime']}" in text
    for path in paths[2:]:
        assert f"({path.name})" in text
        assert ET.parse(path).getroot().tag.endswith("svg")
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["machine"].keys() >= {"cpu", "cores", "memory_gb", "os", "python", "date"}
    assert len(content["side_by_side"]["latency_ms"]["16"]["06 prediction"]) == 101


def test_the_same_figures_are_drawn_to_the_same_bytes(together, tmp_path):
    one, other = (write(together, {}, "short", 1, tmp_path / name)[2:] for name in ("one", "other"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]

"""The part of `make bench` that does not measure: measurements, tables, plots."""

import json
import xml.etree.ElementTree as ET
from importlib import import_module
from types import SimpleNamespace

import pytest

from scripts.benchmarks import __main__ as program
from scripts.benchmarks import side_by_side
from scripts.benchmarks.harness import Benchmark, Measurement, measurements_of
from scripts.benchmarks.report import markdown, write
from scripts.benchmarks.side_by_side import SideBySide
from scripts.devstack.machine import described, libraries
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.runs import Profile, SkippedError, modules
from serving_testing.load import Load

KNOWN = modules("scripts.benchmarks")


def test_every_pattern_has_a_benchmark():
    assert KNOWN.keys() == PATTERNS.keys()


@pytest.mark.parametrize("number", KNOWN)
def test_every_benchmark_has_an_endpoint_of_its_own_pattern(number):
    module = import_module(KNOWN[number])
    assert all(endpoint.port.startswith(f"PORT_{number}_") for endpoint in module.ENDPOINTS)
    variant = getattr(module, "VARIANT", PATTERNS[number])
    ports = {name for process in variant.processes for name in process.ports}
    assert {endpoint.port for endpoint in module.ENDPOINTS} <= ports


def measurement(value, **target):
    return Measurement(group="Ratios", what="ours to theirs", measure="ratio", value=value, unit="x", **target)


@pytest.mark.parametrize(
    ("value", "target", "is_missed", "text"),
    [
        (0.5, {}, False, "0.5 x"),
        (0.5, {"at_least": 0.5}, False, "0.5 x"),
        (0.4999, {"at_least": 0.5}, True, "0.5 x MISSED"),
        (2, {"at_most": 1.5}, True, "2 x MISSED"),
        (12345.6, {"at_least": 1, "at_most": 20_000}, False, "12,346 x"),
    ],
)
def test_a_missed_target_is_marked(value, target, is_missed, text):
    assert measurement(value, **target).is_missed is is_missed
    assert measurement(value, **target).text == text


LOAD = Load(latencies=[0.001 * number for number in range(1, 101)], failed=0, seconds=2)


def test_each_group_is_one_table():
    found = [
        *measurements_of("Requests", "ours", [LOAD, LOAD]),
        *measurements_of("Requests", "theirs", [Load([0.1], 3, 1)]),
    ]
    found.append(measurement(0.2, at_least=0.5))
    assert markdown(found) == (
        "\n### Requests\n\n|  | rate | p50 | p99 | failed | target |\n| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| ours | 50 /s | 51 ms | 100 ms |  |  |\n| theirs | 1 /s | 100 ms | 100 ms | 3 MISSED | at most 0 |\n"
        "\n### Ratios\n\n|  | ratio | target |\n| --- | ---: | ---: |\n"
        "| ours to theirs | 0.2 x MISSED | at least 0.5 |\n"
    )


@pytest.fixture
def together():
    slow = Load([latency * 10 for latency in LOAD.latencies], 0, 2)
    endpoints = [endpoint for name in KNOWN.values() for endpoint in import_module(name).ENDPOINTS]
    loads = {(endpoint, n): [LOAD, slow] for endpoint in endpoints for n in endpoint.connections}
    return SideBySide(pattern=program.ALL, loads=loads, memory_mb={"06 proxy": 72.5})


def benchmark_of_03():
    benchmark = Benchmark(pattern=PATTERNS["03"])
    for count in (1, 2):
        benchmark.add("Jobs", f"{count} workers, model server", "rate", 100 * count, "/s")
    return benchmark


def test_the_report_has_everything(together, tmp_path):
    benchmark = benchmark_of_03()
    benchmark.skip("a database: not installed")
    paths = write(together, [benchmark], Profile.SHORT, 100, tmp_path)
    text = (tmp_path / "bench.md").read_text()
    assert described() in text
    assert "| 06 proxy | 72.5 MB |" in text
    assert "## 03 Asynchronous" in text
    assert "Skipped: a database: not installed." in text
    assert f"onnxruntime {libraries()['onnxruntime']}" in text
    for path in paths[2:]:
        assert f"({path.name})" in text
        assert ET.parse(path).getroot().tag.endswith("svg")
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["machine"].keys() >= {"cpu", "cores", "memory_gb", "os", "python", "date"}
    assert len(content["side_by_side"]["latency_ms"]["16"]["06 prediction"]) == 101


def test_the_same_measurements_are_drawn_to_the_same_bytes(together, tmp_path):
    one, other = (write(together, [], Profile.SHORT, 1, tmp_path / name)[2:] for name in ("one", "other"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


@pytest.fixture
def fake_patterns(monkeypatch, tmp_path):
    """`make bench` of modules that measure nothing real; its exit code, and bench.json."""

    def run(**measures):
        async def nothing(*_):
            pass

        known = {number: f"fake_{number}" for number in measures}
        fakes = {f"fake_{number}": SimpleNamespace(measure=measure) for number, measure in measures.items()}
        monkeypatch.setattr(program, "modules", lambda package: known)
        monkeypatch.setattr(program, "import_module", fakes.__getitem__)
        monkeypatch.setattr(side_by_side, "measure", nothing)
        code = program.main(["--output", str(tmp_path)])
        return code, json.loads((tmp_path / "bench.json").read_text())

    return lambda measures: run(**measures)


def test_what_was_measured_is_kept_when_a_later_part_fails_or_cannot_run(fake_patterns, capsys):
    async def fails(benchmark):
        benchmark.add("Jobs", "one", "rate", 1, "/s")
        raise RuntimeError("broken")

    async def cannot_run(benchmark):
        raise SkippedError("no redis-server found")

    async def works(benchmark):
        benchmark.add("Requests", "other", "rate", 2, "/s")

    code, content = fake_patterns({"02": fails, "03": cannot_run, "06": works})
    assert code == 1
    assert {number: len(found) for number, found in content["patterns"].items()} == {"02": 1, "03": 0, "06": 1}
    assert content["failed"] == {"02 Synchronous": "ended early: RuntimeError: broken"}
    assert content["skipped"] == {"03 Asynchronous": ["no redis-server found"]}
    assert "skipped: no redis-server found" in capsys.readouterr().out
    assert fake_patterns({"03": cannot_run, "06": works})[0] == 0

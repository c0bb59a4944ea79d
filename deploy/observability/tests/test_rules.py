"""The rules, dashboards and configurations, in Prometheus's own judgement where promtool is installed."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from deploy.observability import dashboards, slo, testbed
from deploy.observability.alerting import CaseResult, matrix, write
from deploy.observability.cases import CASES
from deploy.observability.generated import keep
from scripts.devstack import metrics
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.runs import Profile
from scripts.devstack.stack import DevStack
from scripts.devstack.table import ROOT
from serving_testing.promtool import needs_promtool, promtool

HERE = ROOT / "deploy/observability"
RULES = sorted((HERE / "rules").glob("*.yml"))
RULE_TESTS = sorted((HERE / "tests/rules").glob("*.yml"))
OVERLAY = yaml.safe_load((HERE / "docker-compose.yml").read_text())
PATTERN_FOLDERS = sorted(ROOT.glob("[0-9][0-9]_*_pattern"))
ALERTS = {
    rule["alert"]: rule
    for path in RULES
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}


def test_generated_files_are_up_to_date():
    assert keep(slo.files(), HERE / "rules", "slo_*.yml", []) == 0
    assert keep(dashboards.files(), dashboards.FOLDER, "*.json", []) == 0


def test_generated_files_are_written_and_stale_ones_removed(tmp_path):
    (tmp_path / "old.json").write_text("{}")
    (tmp_path / "kept.txt").write_text("not ours")
    wanted = {tmp_path / "new.json": "[]"}
    assert keep(wanted, tmp_path, "*.json", []) == 1
    assert keep(wanted, tmp_path, "*.json", ["--write"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"new.json", "kept.txt"}


@needs_promtool
def test_rules_are_valid():
    assert promtool("check", "rules", *map(str, RULES)) == []


@needs_promtool
@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should(path):
    assert promtool("test", "rules", str(path)) == []


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_is_tested_both_ways(alert):
    tests = [test for path in RULE_TESTS for test in yaml.safe_load(path.read_text())["tests"]]
    cases = [case for test in tests for case in test["alert_rule_test"] if case["alertname"] == alert]
    assert [case for case in cases if case["exp_alerts"]], "fires"
    assert [case for case in cases if not case["exp_alerts"]], "does not fire"


def test_a_fault_fires_each_alert():
    fired = {alert.partition(" ")[0] for case in CASES for alert in case.alerts}
    assert sorted(fired) == sorted(ALERTS)
    numbers = [*PATTERNS, "all"]
    assert {case.pattern for case in CASES} | {alert.split()[1] for case in CASES for alert in case.alerts} <= {
        *numbers
    }


@needs_promtool
def test_scaled_rules_are_valid_and_differ_in_their_times_only(tmp_path):
    for path in RULES:
        (tmp_path / path.name).write_text(testbed.scaled(path.read_text()))
    assert promtool("check", "rules", *map(str, tmp_path.iterdir())) == []
    text = "".join(path.read_text() for path in sorted(tmp_path.iterdir()))
    assert "[1d]" not in text
    assert "slo:bad_ratio:1d" in text
    assert "for: 1m" not in text
    assert f"[{86_400 // testbed.FACTOR}s]" in text
    assert f"> bool {180 // testbed.FACTOR}\n" in text
    assert "> bool 5\n" in text


def test_the_matrix_shows_what_fired_what_did_not_and_what_must_not():
    outcomes = [
        CaseResult(
            pattern="03", fault="stop", process="redis", expected=["A 03", "B 03"], fired=["A 03", "B 03"], seconds=7
        ),
        CaseResult(
            pattern="03", fault="kill -9", process="worker", expected=["A 03"], fired=["B 07"], error="TimeoutError: "
        ),
        CaseResult(pattern="03", fault="kill -9", process="redis", expected=[], may=["A 03", "B 03"], fired=["B 03"]),
    ]
    assert [outcome.is_passed for outcome in outcomes] == [True, False, True]
    rows = [
        line
        for line in matrix(outcomes, ["all, panel: up"], Profile.LONG, ["A", "B"])
        if line.startswith(("| 0", "- "))
    ]
    assert rows == [
        "| 03 stop redis | ● 03 | ● 03 | 7 s |",
        "| 03 kill -9 worker (TimeoutError: ) | missing 03 | wrong 07 |  |",
        "| 03 kill -9 redis |  | ○ 03 |  |",
        "- empty: all, panel: up",
    ]


def test_a_fault_tried_again_alone_replaces_its_line_and_no_other(tmp_path):
    quiet = CaseResult(pattern="all", fault="none", process="10 minutes", expected=[])
    first, second = (
        CaseResult(pattern=case.pattern, fault=case.fault, process=case.process, expected=sorted(case.alerts))
        for case in CASES[:2]
    )
    write([quiet, first, second], [], Profile.LONG, tmp_path)
    again = replace(second, fired=second.expected)
    write([again], None, Profile.QUICK, tmp_path)
    found = json.loads((tmp_path / "alerts.json").read_text())
    assert found["cases"] == [asdict(each) for each in (quiet, first, again)]
    assert found["profile"] == "long"
    assert 'PROVE="alerts long"' in (tmp_path / "alerts.md").read_text()


@pytest.mark.parametrize("language", ["", ".ja"])
def test_each_alert_has_an_entry_in_the_runbook_and_each_entry_an_alert(language):
    text = (ROOT / f"docs/runbook{language}.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (\w+)$", text, re.MULTILINE) == sorted(ALERTS)
    for alert, rule in ALERTS.items():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{alert.lower()}"
        assert rule["labels"]["severity"] in {"page", "ticket"}


@needs_promtool
def test_queries_of_the_dashboards_are_valid(tmp_path):
    rules = [{"record": "x", "expr": query, "labels": {"number": str(n)}} for n, (*_, query) in enumerate(queries())]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboards", "rules": rules}]}))
    assert len(rules) > 50
    assert promtool("check", "rules", str(tmp_path / "rules.yml")) == []


def queries():
    return dashboards.queries()


def test_every_pattern_has_a_dashboard_and_its_placeholders_are_filled():
    assert {path.stem for path in dashboards.FOLDER.glob("*.json")} == {
        "overview",
        *(f"pattern-{folder.name[:2]}" for folder in PATTERN_FOLDERS),
    }
    assert not [query for *_, query in queries() if re.search(r"\{(pattern|front)\}", query)]


def test_the_overlay_mounts_every_rule_and_dashboard():
    mounted = {Path(entry["file"]).name for entry in OVERLAY["configs"].values()}
    assert {path.name for path in [*RULES, *dashboards.FOLDER.glob("*.json")]} <= mounted
    for service in OVERLAY["services"].values():
        for config in service["configs"]:
            file = OVERLAY["configs"][config["source"]]["file"]
            # Paths count from the pattern's folder.
            assert all((folder / file).is_file() for folder in PATTERN_FOLDERS), file
            assert Path(config["target"]).name == Path(file).name


@pytest.mark.parametrize("folder", PATTERN_FOLDERS, ids=lambda folder: folder.name[:2])
def test_the_scrape_configuration_names_services_of_the_compose_file(folder):
    services = yaml.safe_load((folder / "docker-compose.yml").read_text())["services"]
    scraped = yaml.safe_load((folder / "prometheus.yml").read_text())["scrape_configs"]
    names = [name for job in scraped for found in job["dns_sd_configs"] for name in found["names"]]
    assert set(names) <= services.keys()
    # What is not scraped: databases, Redis, what runs once, and clients.
    assert services.keys() - set(names) <= {"redis", "mysql", "models", "job", "client"}


@needs_promtool
@pytest.mark.parametrize("folder", PATTERN_FOLDERS, ids=lambda folder: folder.name[:2])
def test_the_scrape_configuration_is_valid(folder):
    assert promtool("check", "config", "--syntax-only", str(folder / "prometheus.yml")) == []


@needs_promtool
def test_the_devstack_has_every_process_scraped(tmp_path):
    stack = DevStack([*PATTERNS], run_dir=tmp_path)
    metrics.configure(stack, tmp_path, interval="1s")
    file = tmp_path / f"{metrics.NUMBER}.json"
    assert promtool("check", "config", str(file)) == []
    scraped = {job["job_name"] for job in json.loads(file.read_text())["scrape_configs"]}
    assert {each.id for each in stack.processes} - scraped == {"03-redis", "07-redis", "04-job"}


def test_without_prometheus_the_patterns_start_alone(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert metrics.with_prometheus(PATTERNS) == PATTERNS

import json

from deploy.swarm.__main__ import Row, main, write


def test_without_docker_it_is_skipped_with_the_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["06", "--output", str(tmp_path)]) == 0
    assert "SKIPPED: no Docker engine answers" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_report_keeps_the_patterns_that_were_not_run(tmp_path, capsys):
    path = tmp_path / "new/swarm.json"
    jobs = Row("03", "Asynchronous", requests=1200, broken_by_kills=2, accepted=1198, lost=0, twice=0, kills=3)
    write(path, [jobs, Row("06", "Microservices", requests=5)], 3)
    write(path, [Row("06", "Microservices", requests=7, failed=1)], 3)

    assert capsys.readouterr().out.splitlines()[-1] == "| 06 Microservices | 7 | **1** | 0 (0) | - | - | - |"
    written = json.loads(path.read_text())
    assert written["rows"][0] == "| 03 Asynchronous | 1,200 | **0** | 2 (3) | 1,198 | **0** | **0** |"
    assert (written["requests"], written["failed"], len(written["rows"])) == (1207, 1, 2)


def test_a_run_passes_only_with_work_done_and_nothing_lost():
    assert Row("03", "x", requests=1, accepted=1, lost=0, twice=0, broken_by_kills=2).is_passed
    assert Row("06", "x", requests=1).is_passed
    assert not Row("06", "x").is_passed
    unclean = (Row("03", "x", 1, failed=1), Row("03", "x", 1, lost=1), Row("03", "x", 1, twice=1))
    assert not any(row.is_passed for row in unclean)

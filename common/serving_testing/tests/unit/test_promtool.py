"""What is read from a page of metrics."""

from serving_testing.promtool import naming_problems, needs_promtool, undocumented

PAGE = """# HELP jobs_total Jobs.
# TYPE jobs_total counter
jobs_total 1
# HELP process_open_fds Open files.
# TYPE process_open_fds gauge
process_open_fds 2
"""


def test_metrics_that_the_readme_does_not_name_are_found(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("| `jobs_total` | counter |")
    assert undocumented(PAGE, readme) == []
    readme.write_text("jobs_total")
    assert undocumented(PAGE, readme) == ["jobs_total"]


@needs_promtool
def test_names_against_the_rules_are_found_but_for_a_specified_one():
    assert naming_problems(PAGE) == []
    specified = "# HELP redis_key_count Keys.\n# TYPE redis_key_count gauge\nredis_key_count 1\n"
    assert naming_problems(specified) == []
    assert naming_problems(PAGE.replace("jobs_total", "jobs")) != []

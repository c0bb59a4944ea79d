"""Generated requests, valid and invalid, with images of the hooks: no 500, no undocumented response."""

from pathlib import Path

from serving_testing.openapi import assert_conforms


def test_proxy_conforms_to_its_openapi_document(system, tmp_path):
    assert_conforms(system.proxy, tmp_path, examples=10, hooks=Path(__file__).with_name("schemathesis_hooks.py"))

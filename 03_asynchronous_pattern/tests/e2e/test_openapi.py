"""Generated requests, valid and invalid: no 500, no undocumented response."""

from serving_testing.openapi import assert_conforms


def test_the_proxy_conforms_to_its_openapi_document(system, tmp_path):
    assert_conforms(system.proxy, tmp_path, examples=40)

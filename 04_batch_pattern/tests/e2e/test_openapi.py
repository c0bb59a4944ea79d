"""Generated requests, valid and invalid: no 500, no undocumented response."""

from serving_testing.openapi import assert_conforms


def test_api_conforms_to_its_openapi_document(api, tmp_path):
    assert_conforms(api.base_url, tmp_path, examples=20)

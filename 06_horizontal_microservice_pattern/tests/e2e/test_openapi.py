"""Generated requests, valid and invalid, to the proxy and a service: no 500, no undocumented response."""

import pytest

from serving_testing.openapi import assert_conforms


@pytest.mark.parametrize("name", ["proxy", "setosa"])
def test_responses_match_the_openapi_document(system, name, tmp_path):
    assert_conforms(system.proxy if name == "proxy" else system.services[name], tmp_path, examples=40)

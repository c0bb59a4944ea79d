"""コンテナでしか示せないこと。"""

import json
import os
import urllib.request

from serving_testing.compose import crash, only_against_compose, wait_until_restarted
from serving_testing.processes import wait_until

pytestmark = only_against_compose("TF_SERVING_REST")


def predicted_class() -> int:
    body = json.dumps({"instances": [[5.1, 3.5, 1.4, 0.2]]}).encode()
    with urllib.request.urlopen(f"{os.environ['TF_SERVING_REST']}/v1/models/iris:predict", body, timeout=10) as answer:
        (probabilities,) = json.load(answer)["predictions"]
    return int(max(range(3), key=probabilities.__getitem__))


def test_a_server_that_is_killed_comes_back_and_answers() -> None:
    assert predicted_class() == 0
    container = crash("model_server")
    wait_until_restarted(container)
    wait_until(lambda: predicted_class() == 0)

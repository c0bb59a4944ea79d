"""The private Redis of the tests."""

from redis import Redis

from serving_testing.fixtures import running_redis


def test_data_survives_a_kill_and_keys_without_ttl_are_found(tmp_path):
    with running_redis(tmp_path) as server:
        with Redis(port=server.port) as client:
            client.set("kept", 1)
            client.set("expires", 1, ex=60)
            client.rpush("queue:predict", "a1b2c3")
        server.kill()
        assert not server.is_up()
        server.start()

        assert server.keys_without_ttl() == ["kept"]

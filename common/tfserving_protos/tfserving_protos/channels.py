"""How a client reaches one or more servers: the target of its channel, and the channel's options."""

from __future__ import annotations

import json
from ipaddress import ip_address

from tfserving_protos.services import PREDICTION_SERVICE

# gRPC's own limit: it makes no more than five attempts, whatever a service config says.
MAX_RETRIES = 4


def target(addresses: str) -> str:
    """The gRPC target for `addresses`: `host:port`, any target (`dns:///name:8500`), or `ip:port,ip:port`.

    Raises:
        ValueError: several addresses of which one is not an IP address with a port. gRPC resolves one name at a time:
            give the servers one DNS name.
    """
    if "," not in addresses or addresses.startswith(("ipv4:", "ipv6:")):
        return addresses
    versions: set[int] = set()
    for address in addresses.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            versions.add(ip_address(host.strip("[]")).version)
        except ValueError:
            versions.add(0)
        if not port.isdecimal():
            versions.add(0)
    if versions not in ({4}, {6}):
        raise ValueError(f"{addresses!r}: several servers are ip:port,ip:port of one IP version, or one DNS name")
    return f"ipv{versions.pop()}:{addresses.replace(' ', '')}"


def options(*, retries: int = 0, method: str = "") -> list[tuple[str, int | str]]:
    """Options of a channel whose calls take turns among all servers that can be reached.

    Args:
        retries: how often a call is retried, at most MAX_RETRIES, and only if it ended with UNAVAILABLE.
        method: retry only this method of PredictionService. A connection that breaks is UNAVAILABLE, too, and the
            request may be what broke the server: retried, it breaks the next one.
    """
    config: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retries > 0:
        policy = {
            "maxAttempts": 1 + min(retries, MAX_RETRIES),
            "initialBackoff": "0.1s",
            "maxBackoff": "2s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        name = {"service": PREDICTION_SERVICE} | ({"method": method} if method else {})
        config["methodConfig"] = [{"name": [name], "retryPolicy": policy}]
    return [
        ("grpc.service_config", json.dumps(config)),
        # Finds a server that went away without closing its connections. Only while a call is in flight: servers end a
        # connection that is pinged when idle.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        # By default gRPC waits up to two minutes before it reconnects, and limits messages to 4 MiB.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
    ]

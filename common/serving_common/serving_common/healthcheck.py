"""A container's health check without curl: `python -m serving_common.healthcheck`."""

import os
import sys
import urllib.error
import urllib.request


def main() -> None:
    """Exit 0 if GET on this container's PORT returns 200, else 1. HEALTH_PATH names another path than /health."""
    url = f"http://127.0.0.1:{os.environ.get('PORT', '8000')}{os.environ.get('HEALTH_PATH') or '/health'}"
    # Docker passes the HTTP proxy of its configuration to every container; that proxy cannot reach this 127.0.0.1.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=3).close()
    except (urllib.error.URLError, TimeoutError) as exc:
        sys.exit(f"{url}: {exc}")


if __name__ == "__main__":
    main()

"""A process with the faults that a supervisor meets: `python -m scripts.devstack.tests.dummy FAULT [PORT]`."""

import http.server
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(dict(os.environ)).encode())

    def log_message(self, *args):
        pass


def main(fault, port="0"):
    print(f"pid {os.getpid()}")
    match fault:
        case "dies-at-start":
            print("the disk is on fire")
            return 3
        case "runs-once":  # fails when its file is there already
            if Path(port).exists():
                return 4
            Path(port).touch()
            time.sleep(0.2)
            return 1
        case "finishes":
            print("all work done", end="")
            return 0
        case "never-ready":
            time.sleep(600)
        case "ignores-sigterm":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "has-a-child":
            child = subprocess.Popen([sys.executable, "-m", "scripts.devstack.tests.dummy", "never-ready"])
            print(f"child {child.pid}")
        case "says-when-it-stops":
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
    finally:
        print("stopped")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

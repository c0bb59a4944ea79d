"""The real programs on a table of dummies: `python -m scripts.devstack.tests.dummies up|demo 90 ...`."""

import os
import sys

from scripts.devstack import demo, stack, up
from scripts.devstack.steps import send
from scripts.devstack.table import Pattern, ProcessDefinition, by_number
from serving_testing.processes import NO_COVERAGE


def dummy(name, fault, number, *, with_port=True, env=None, **options):
    port = f"PORT_{number}_{name.upper()}"
    options = {"ready": f"http://127.0.0.1:{{{port}}}/health" if with_port else None} | options
    return ProcessDefinition(
        name=name,
        argv=("python", "-m", "scripts.devstack.tests.dummy", fault, *([f"{{{port}}}"] if with_port else [])),
        ports={port: 1} if with_port else {},
        env=NO_COVERAGE | (env or {}),
        **options,
    )


def pattern(number, *processes):
    return Pattern(number=number, title=f"Pattern {number}", folder=".", processes=processes)


DUMMIES = by_number(
    [
        pattern(
            "90",
            dummy("good", "serves", "90", env={"KIND": "fixed"}, defaults={"LEVEL": "info"}),
            dummy("parent", "has-a-child", "90"),
        ),
        pattern("91", dummy("bad", "dies-at-start", "91"), dummy("good", "serves", "91")),
        pattern("92", dummy("stubborn", "ignores-sigterm", "92")),
        pattern("93", dummy("slow", "never-ready", "93", ready_within_s=0.3)),
        pattern("94", dummy("patient", "never-ready", "94")),
        pattern(
            "95",
            dummy("front", "says-when-it-stops", "95", depends_on=("96-store",)),
        ),
        pattern("96", dummy("store", "says-when-it-stops", "96", ready="tcp://127.0.0.1:{PORT_96_STORE}")),
    ]
)


async def demo_right(client, urls):
    yield await send(client, "GET", f"{urls['PORT_90_GOOD']}/env", want={"LEVEL": "info"}, is_highlight=True)


async def demo_wrong(client, urls):
    yield await send(client, "GET", f"{urls['PORT_92_STUBBORN']}/env", want={"HOME": 5})
    raise AssertionError("a demo ends with its first wrong answer")


async def demo_unreachable(client, urls):
    yield await send(client, "GET", "http://127.0.0.1:1/env", want=dict)


DEMOS = {"90": demo_right, "91": demo_right, "92": demo_wrong, "94": demo_right, "95": demo_unreachable}


if __name__ == "__main__":
    program, *numbers = sys.argv[1:]
    stack.STOP_GRACE_S = float(os.environ.get("STOP_GRACE_S", stack.STOP_GRACE_S))
    if os.environ.get("UNCHECKED_PORTS"):
        stack.DevStack._check_ports = lambda self: None  # type: ignore[method-assign]
    sys.exit(up.main(numbers, DUMMIES) if program == "up" else demo.main(numbers, DUMMIES, DEMOS))

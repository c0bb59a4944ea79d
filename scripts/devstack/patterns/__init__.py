"""One module for each pattern: PATTERN describes its processes, demo() sends its requests for `make demo`."""

from importlib import import_module
from pkgutil import iter_modules

from scripts.devstack.table import by_number

_modules = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]

PATTERNS = by_number(module.PATTERN for module in _modules)
DEMOS = {module.PATTERN.number: module.demo for module in _modules}

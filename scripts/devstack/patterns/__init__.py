"""One module for each pattern: PATTERN describes its processes, demo() sends its requests for `make demo`,
WORK is what its load is made of.

`own_model(card)` has both for a model of the user's own; it raises ModelError for a card that the pattern cannot serve.
"""

from importlib import import_module
from pkgutil import iter_modules

from scripts.devstack.table import by_number

_modules = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]

PATTERNS = by_number(module.PATTERN for module in _modules)
WORKS = {module.PATTERN.number: module.WORK for module in _modules}
DEMOS = {module.PATTERN.number: module.demo for module in _modules}
OWN_MODELS = {module.PATTERN.number: module.own_model for module in _modules}

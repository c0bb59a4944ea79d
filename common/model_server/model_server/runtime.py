"""The part of TensorFlow that runs a SavedModel, imported without the rest of it.

`import tensorflow` costs about 9 s of CPU time and 620 MB, most of it Keras and the public API's modules. A session
and the SavedModel loader need a fifth of that. TensorFlow's package __init__ cannot be told to import less, so an
empty package of the same name and path takes its place, unless the real one is there already.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types

# C++ 側の案内ログは運用者には雑音なので、警告以上だけを出す。import より前に設定する必要がある。
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def _stand_in() -> None:
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("TensorFlow is not installed", name="tensorflow")
    package = types.ModuleType("tensorflow")
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = spec
    sys.modules["tensorflow"] = package


if "tensorflow" not in sys.modules:
    _stand_in()

# 代わりのパッケージを置いた後でなければならないので、先頭には書けない (E402)。
from tensorflow.core.protobuf.config_pb2 import CallableOptions, ConfigProto  # noqa: E402
from tensorflow.python.client.session import Session  # noqa: E402
from tensorflow.python.framework.errors_impl import OpError  # noqa: E402
from tensorflow.python.framework.ops import Graph  # noqa: E402
from tensorflow.python.lib.io.tf_record import tf_record_iterator  # noqa: E402
from tensorflow.python.saved_model.loader_impl import SavedModelLoader  # noqa: E402

__all__ = ["CallableOptions", "ConfigProto", "Graph", "OpError", "SavedModelLoader", "Session", "tf_record_iterator"]

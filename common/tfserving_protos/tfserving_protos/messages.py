"""Every message class of the .proto files, and every value of their top-level enums, by name.

The classes are in a descriptor pool of their own, so that they do not conflict with a real TensorFlow in the same
process, which registers messages of the same names in protobuf's default pool.
"""

from __future__ import annotations

from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

POOL = DescriptorPool()

for _file in FileDescriptorSet.FromString(Path(__file__).with_name("descriptors.binpb").read_bytes()).file:
    POOL.Add(_file)
    _descriptor = POOL.FindFileByName(_file.name)
    for _message in _descriptor.message_types_by_name.values():
        globals()[_message.name] = GetMessageClass(_message)
    for _enum in _descriptor.enum_types_by_name.values():
        globals().update({value.name: value.number for value in _enum.values})

"""Build hook: compiles protos/*.proto to descriptors.binpb and writes the type stub of its messages, messages.pyi.

Runs for wheels and for editable installs. `python hatch_build.py` does the same after an edit of a .proto file.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet
from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PACKAGE = Path(__file__).parent / "tfserving_protos"
Field = FieldDescriptorProto
SCALARS = {
    Field.TYPE_BOOL: "bool",
    Field.TYPE_BYTES: "bytes",
    Field.TYPE_DOUBLE: "float",
    Field.TYPE_FLOAT: "float",
    Field.TYPE_ENUM: "int",
    Field.TYPE_STRING: "str",
    Field.TYPE_INT32: "int",
    Field.TYPE_INT64: "int",
    Field.TYPE_UINT32: "int",
    Field.TYPE_UINT64: "int",
}


class DescriptorHook(BuildHookInterface[Any]):
    """Called by hatchling."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate into the source folder, where an editable install reads them and a wheel includes them."""
        generate(PACKAGE)


def generate(package: Path) -> None:
    """Write descriptors.binpb and messages.pyi into `package`, from its protos folder."""
    sources = package / "protos"
    target = package / "descriptors.binpb"
    arguments = [
        "protoc",
        f"--proto_path={sources}",
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--descriptor_set_out={target}",
        "--include_imports",
        *sorted(file.name for file in sources.glob("*.proto")),
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError(f"protoc failed on {sources}")
    descriptors = FileDescriptorSet.FromString(target.read_bytes())
    (package / "messages.pyi").write_text("\n".join(stub(descriptors)) + "\n")


def stub(descriptors: FileDescriptorSet) -> Iterator[str]:
    """The lines of a stub with one class for each message, typed as protobuf's runtime behaves."""
    yield "from collections.abc import Iterable, Mapping, MutableMapping"
    yield "from google.protobuf.any_pb2 import Any"
    yield "from google.protobuf.descriptor_pool import DescriptorPool"
    yield "from google.protobuf.internal.containers import RepeatedCompositeFieldContainer"
    yield "from google.protobuf.internal.containers import RepeatedScalarFieldContainer"
    yield "from google.protobuf.message import Message"
    yield "from google.protobuf.wrappers_pb2 import BoolValue, Int64Value, StringValue"
    yield ""
    yield "POOL: DescriptorPool"
    for file in descriptors.file:
        if file.package.startswith("google."):
            continue
        yield from enum_values(file.enum_type, "")
        for message in file.message_type:
            yield from message_stub(message, "")


def message_stub(message: DescriptorProto, indent: str) -> Iterator[str]:
    inner = indent + "    "
    yield ""
    yield f"{indent}class {message.name}(Message):"
    maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    for nested in message.nested_type:
        if not nested.options.map_entry:
            yield from message_stub(nested, inner)
    yield from enum_values(message.enum_type, inner)
    parameters = []
    for field in message.field:
        entry = maps.get(field.type_name.rsplit(".", 1)[-1])
        kind, accepted = field_types(field, entry)
        parameters.append(f"{field.name}: {accepted} | None = ...")
        if kind.startswith(("Repeated", "MutableMapping")) or field.type == Field.TYPE_MESSAGE:
            yield f"{inner}@property"
            yield f"{inner}def {field.name}(self) -> {kind}: ..."
        else:
            yield f"{inner}{field.name}: {kind}"
    signature = ", ".join(["self", "*", *parameters] if parameters else ["self"])
    yield f"{inner}def __init__({signature}) -> None: ..."


def field_types(field: FieldDescriptorProto, entry: DescriptorProto | None) -> tuple[str, str]:
    """The type that reading the field gives, and the type that the constructor takes."""
    if entry is not None:
        key, value = (python_type(part) for part in entry.field)
        return f"MutableMapping[{key}, {value}]", f"Mapping[{key}, {value}]"
    kind = python_type(field)
    if field.label != Field.LABEL_REPEATED:
        return kind, kind
    container = "Composite" if field.type == Field.TYPE_MESSAGE else "Scalar"
    return f"Repeated{container}FieldContainer[{kind}]", f"Iterable[{kind}]"


def python_type(field: FieldDescriptorProto) -> str:
    if field.type != Field.TYPE_MESSAGE:
        return SCALARS[field.type]
    for package in (".tensorflow.serving.", ".tensorflow.", ".inference.", ".google.protobuf."):
        if field.type_name.startswith(package):
            return field.type_name.removeprefix(package)
    raise ValueError(f"no Python type for {field.type_name}")


def enum_values(enums: Iterable[EnumDescriptorProto], indent: str) -> Iterator[str]:
    for enum in enums:
        yield from (f"{indent}{value.name}: int" for value in enum.value)


if __name__ == "__main__":
    generate(PACKAGE)

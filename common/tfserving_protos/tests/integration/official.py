"""Prints the official descriptors as JSON. Runs as a process, because importing them imports TensorFlow."""

import importlib
import json

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

MODULES = [
    *(f"tensorflow.core.{name}_pb2" for name in ("framework.tensor", "example.example", "protobuf.meta_graph")),
    *(
        f"tensorflow_serving.apis.{name}_pb2"
        for name in (
            "get_model_metadata",
            "get_model_status",
            "model_management",
            "model_service",
            "prediction_log",
            "prediction_service",
        )
    ),
    *(f"tensorflow_serving.config.{name}_pb2" for name in ("file_system_storage_path_source", "model_server_config")),
]


Descriptors = dict[str, dict[str, object]]


def field(descriptor: FieldDescriptor) -> list[object]:
    """All properties of a field that affect the wire format."""
    named = descriptor.message_type or descriptor.enum_type
    oneof = descriptor.containing_oneof
    return [
        descriptor.number,
        descriptor.type,
        descriptor.is_repeated,
        descriptor.is_packed,
        named.full_name if named else None,
        oneof.name if oneof else None,
    ]


def collect(descriptor: Descriptor | EnumDescriptor, found: Descriptors) -> None:
    """Add an enum, or a message with all that it contains and refers to, under its full name."""
    if descriptor.full_name in found:
        return
    if isinstance(descriptor, EnumDescriptor):
        found[descriptor.full_name] = {value.name: value.number for value in descriptor.values}
        return
    found[descriptor.full_name] = {each.name: field(each) for each in descriptor.fields}
    for each in descriptor.fields:
        if referred := each.message_type or each.enum_type:
            collect(referred, found)


def main() -> None:
    found: Descriptors = {}
    for name in MODULES:
        file = importlib.import_module(name).DESCRIPTOR
        for message in file.message_types_by_name.values():
            collect(message, found)
        for service in file.services_by_name.values():
            found[service.full_name] = {
                method.name: [method.input_type.full_name, method.output_type.full_name] for method in service.methods
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()

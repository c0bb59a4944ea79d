"""JSON and TensorProto codecs on random input."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model_server.json_codec import parse_body
from model_server.status import Code, StatusError
from model_server.tensors import ELEMENT_TYPES, decode, encode
from tfserving_protos import messages

# A busy machine can take longer than the default deadline of 200 ms.
ANY_TIME = settings(deadline=None)


@ANY_TIME
@given(st.binary(max_size=60))
def test_parse_body_returns_an_object_or_raises_the_reason(body: bytes) -> None:
    try:
        document = parse_body(body)
    except StatusError as error:
        code = error.code
    else:
        assert isinstance(document, dict)
        return
    assert code is Code.INVALID_ARGUMENT


@ANY_TIME
@given(
    st.sampled_from(sorted(ELEMENT_TYPES)),
    st.lists(st.integers(-1, 4), max_size=3),
    st.binary(max_size=40),
    st.lists(st.integers(0, 100), max_size=5),
)
def test_decode_returns_the_shape_or_raises_the_reason(
    kind: int, shape: list[int], content: bytes, values: list[int]
) -> None:
    proto = messages.TensorProto(dtype=kind, tensor_content=content, int_val=values)
    for size in shape:
        proto.tensor_shape.dim.add().size = size
    try:
        array = decode("x", proto)
    except StatusError as error:
        code = error.code
    else:
        assert array.shape == tuple(shape)
        return
    assert code is Code.INVALID_ARGUMENT


@ANY_TIME
@given(
    st.sampled_from([np.float32, np.int64, np.uint8, np.bool_, np.complex64]), st.lists(st.integers(0, 3), max_size=3)
)
def test_encode_and_decode_are_inverse(dtype: type[np.generic], shape: list[int]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    proto = messages.TensorProto()
    encode(array, proto)
    np.testing.assert_array_equal(decode("x", proto), array)


@ANY_TIME
@given(
    st.sampled_from([np.float32, np.float64, np.complex64, np.complex128]),
    st.lists(st.floats(width=32), max_size=40),
    st.booleans(),
)
def test_packed_fields_equal_the_output_of_protobuf(
    dtype: type[np.generic], values: list[float], is_reversed: bool
) -> None:
    array = np.array(values, dtype)[:: -1 if is_reversed else 1]
    proto = messages.TensorProto()
    encode(array, proto)
    field = ELEMENT_TYPES[proto.dtype].field
    parts = array if array.dtype.kind == "f" else np.stack([array.real, array.imag], axis=1).reshape(-1)
    expected = messages.TensorProto(dtype=proto.dtype, tensor_shape=proto.tensor_shape)
    getattr(expected, field).extend(parts.tolist())
    assert proto.SerializeToString() == expected.SerializeToString()

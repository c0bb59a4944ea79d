"""Model cards: what a model takes and gives, as data. Validation, OpenAPI, metadata and samples are derived from them.

A card is a `model.toml` beside the model; `python -m serving_common.cards` prints its JSON Schema. This module needs
neither numpy nor ONNX Runtime; `tabular` runs the model of a card.
"""

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    GetPydanticSchema,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from pydantic_settings import NoDecode

from serving_common.errors import StartupError

FLOAT32_MAX = 3.4028234663852886e38
INT64 = (-(2**63), 2**63 - 1)
DEFAULT_CARD = Path(__file__).with_name("iris.toml")

Value = float | int | str | bool | None
Row = Sequence[Value]
ADD = "write it anew with: python -m models.add"


class Task(StrEnum):
    CLASSIFICATION = "classification"
    ONE_VS_REST = "one-vs-rest"
    REGRESSION = "regression"
    IMAGE_CLASSIFICATION = "image-classification"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Input(_Table):
    """One column of a row."""

    name: str = Field(min_length=1)
    dtype: Literal["float32", "int64", "string", "bool"] = "float32"
    unit: str | None = None
    description: str | None = None
    min: float | None = Field(None, allow_inf_nan=False, description="Least value.")
    max: float | None = Field(None, allow_inf_nan=False, description="Greatest value.")
    above: float | None = Field(None, allow_inf_nan=False, description="Exclusive lower bound.")
    below: float | None = Field(None, allow_inf_nan=False, description="Exclusive upper bound.")
    values: list[str | int | float | bool] | None = Field(None, min_length=1, description="The only values allowed.")
    nullable: bool = Field(False, description="null arrives at the model as NaN.")
    tensor: str | None = Field(None, description="The model's input that has this column; default: by name or order.")

    @model_validator(mode="after")
    def _fits_dtype(self) -> Self:
        if self.dtype in ("string", "bool") and any(bound is not None for bound in self._bounds.values()):
            raise ValueError(f"a {self.dtype} has no range")
        if self.nullable and self.dtype != "float32":
            raise ValueError("nullable needs the dtype float32, which has NaN")
        types = {"float32": (float, int), "int64": (int,), "string": (str,), "bool": (bool,)}[self.dtype]
        for value in self.values or ():
            if not isinstance(value, types) or (isinstance(value, bool) and self.dtype != "bool"):
                raise ValueError(f"values has {value!r}, which is no {self.dtype}")
        low, high = (max(some, default=None) for some in (self._given("min", "above"), self._given("max", "below")))
        if low is not None and high is not None and low > high:
            raise ValueError("the range is empty")
        return self

    @property
    def _bounds(self) -> dict[str, float | None]:
        return {"ge": self.min, "le": self.max, "gt": self.above, "lt": self.below}

    def _given(self, *names: str) -> list[float]:
        return [bound for name in names if (bound := getattr(self, name)) is not None]

    @property
    def rule(self) -> str:
        """What a value must be, as a predicate to the column's name."""
        nouns = {"float32": "a number", "int64": "an integer", "string": "a string", "bool": "true or false"}
        words = {"above": "greater than", "min": "at least", "below": "less than", "max": "at most"}
        bounds = [f"{word} {getattr(self, bound)}" for bound, word in words.items() if getattr(self, bound) is not None]
        rule = f"{nouns[self.dtype]} {' and '.join(bounds)}".rstrip()
        if self.values is not None:
            rule = f"one of {', '.join(json.dumps(value) for value in self.values)}"
        return f"must be {rule}{' or null' if self.nullable else ''}"

    def value_schema(self) -> CoreSchema:
        """The validator of one value, with all that can be wrong as one reason."""
        bounds: dict[str, Any] = {name: bound for name, bound in self._bounds.items() if bound is not None}
        value: CoreSchema
        if self.dtype == "float32":
            # Beyond these a float32 is infinite.
            if not bounds.keys() & {"ge", "gt"}:
                bounds["ge"] = -FLOAT32_MAX
            if not bounds.keys() & {"le", "lt"}:
                bounds["le"] = FLOAT32_MAX
            value = core_schema.float_schema(strict=True, allow_inf_nan=False, **bounds)
        elif self.dtype == "int64":
            lows = [*map(math.ceil, self._given("min")), *(math.floor(bound) + 1 for bound in self._given("above"))]
            highs = [*map(math.floor, self._given("max")), *(math.ceil(bound) - 1 for bound in self._given("below"))]
            value = core_schema.int_schema(strict=True, ge=max([INT64[0], *lows]), le=min([INT64[1], *highs]))
        elif self.dtype == "string":
            value = core_schema.str_schema(strict=True)
        else:
            value = core_schema.bool_schema(strict=True)
        if self.values is not None:
            allowed = {"pydantic_js_updates": {"enum": list(self.values)}}
            value = core_schema.chain_schema([value, core_schema.literal_schema(list(self.values))], metadata=allowed)
        return core_schema.nullable_schema(value) if self.nullable else value

    def value_json_schema(self) -> dict[str, Any]:
        """The same as JSON Schema, under the column's name."""
        schema = TypeAdapter(Annotated[Any, GetPydanticSchema(lambda _source, _handler: self.value_schema())])
        unit = f" in {self.unit}" if self.unit else ""
        described = {"description": self.description} if self.description else {}
        return {"title": f"{self.name}{unit}"} | schema.json_schema() | described


class Output(_Table):
    """What the model answers: labels of classes, or the name of the regressed value."""

    tensor: str | None = Field(None, description="The model's output to use; needed where several fit.")
    labels: list[str] | None = Field(None, min_length=1, description="Of the classes, in the order of the columns.")
    value: str | None = Field(None, description="Name of the regressed value.")
    unit: str | None = None


class Image(_Table):
    """How an image becomes the model's input: (value / 255 - mean) / std of each RGB channel."""

    size: list[PositiveInt] = Field(min_length=2, max_length=2, description="Height and width in pixels.")
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    mean: list[float] = Field(min_length=3, max_length=3)
    std: list[PositiveFloat] = Field(min_length=3, max_length=3)
    resize: Literal["stretch", "crop"] = "stretch"
    labels: str | None = Field(None, description="JSON list of the classes' names, relative to the card.")


class Sample(_Table):
    """Rows that the service is tried with at its start, and what the model answers to them."""

    rows: list[list[Any]] = Field(
        min_length=1, description="nan stands for null. Of an image model: one image file, relative to the card."
    )
    expected: list[list[float]] | None = Field(
        None,
        description="One list of numbers for each row. Of an image model: the best class, from 0, and its probability.",
    )
    tolerance: float = Field(1e-5, ge=0, allow_inf_nan=False, description="Absolute, and relative to larger numbers.")

    @model_validator(mode="after")
    def _finite(self) -> Self:
        if self.expected is not None:
            if len(self.expected) != len(self.rows):
                raise ValueError("expected must have one list for each row")
            if not all(math.isfinite(number) for row in self.expected for number in row):
                raise ValueError("expected has a number that is not finite")
        return self


class Card(_Table):
    """A model card."""

    name: str = Field(min_length=1, max_length=64)
    version: str | None = Field(None, max_length=64, description="Default: first 12 digits of the model's SHA-256.")
    file: str = Field(min_length=1, description="The model, relative to the card.")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="Of the file; unset: not checked.")
    task: Task = Field(strict=False)
    signature: str = Field("serving_default", description="Of a SavedModel.")
    inputs: list[Input] = []
    output: Output
    image: Image | None = None
    sample: Sample | None = None
    _folder: Path = PrivateAttr(Path())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.task is Task.IMAGE_CLASSIFICATION) != (self.image is not None):
            raise ValueError("[image] belongs to the task image-classification, and only to it")
        if self.image is not None:
            if self.inputs:
                raise ValueError("an image model has [image] instead of inputs")
            if (self.image.labels is None) == (self.output.labels is None):
                raise ValueError("an image model needs either image.labels, a file, or output.labels")
            if self.sample and any(len(row) != 1 or not isinstance(row[0], str) for row in self.sample.rows):
                raise ValueError("sample.rows of an image model has one image file in each row")
            if self.sample and any(len(row) != 2 for row in self.sample.expected or ()):
                raise ValueError("sample.expected of an image model has the best class, from 0, and its probability")
            return self
        if not self.inputs:
            raise ValueError("inputs is missing: one [[inputs]] for each column of a row")
        if repeated := {name for name in self.names if self.names.count(name) > 1}:
            raise ValueError(f"inputs has {', '.join(sorted(repeated))} twice")
        if self.sample is None:
            raise ValueError("sample is missing: rows to try the model with")
        if self.task is Task.REGRESSION:
            if self.output.value is None or self.output.labels is not None:
                raise ValueError("output.value must name what a regression gives, and output.labels be absent")
        elif self.output.labels is None:
            raise ValueError("output.labels is missing: the names of the classes")
        elif (self.task is Task.ONE_VS_REST) != (len(self.output.labels) == 1):
            raise ValueError("output.labels has one name for one-vs-rest, and at least two for classification")
        if self.output.labels and len(set(self.output.labels)) < len(self.output.labels):
            raise ValueError("output.labels has a name twice")
        if self.sample.expected and any(len(row) != self.width for row in self.sample.expected):
            raise ValueError(f"sample.expected must have {self.width} numbers for each row")
        try:
            self.validator.validate_python(self.sample_rows)
        except ValidationError as exc:
            error = exc.errors()[0]
            place = [part for part in error["loc"] if isinstance(part, int)]
            name = self.names[place[1]] if "names" in error.get("ctx", {}) else "the row"
            row = place[0] if place else 0
            raise ValueError(f"sample.rows, row {row}: {name} {error['msg']}") from None
        return self

    @property
    def names(self) -> list[str]:
        """The columns' names, in the order of a row."""
        return [each.name for each in self.inputs]

    @property
    def labels(self) -> list[str]:
        """The classes' names; none for a regression."""
        return self.output.labels or []

    @property
    def width(self) -> int:
        """Numbers in the model's answer to a row."""
        return {Task.REGRESSION: 1, Task.ONE_VS_REST: 2}.get(self.task, len(self.labels))

    @property
    def folder(self) -> Path:
        """That of the card, from which its paths start."""
        return self._folder

    @property
    def model_file(self) -> Path:
        return self._folder / self.file

    @property
    def sample_rows(self) -> list[list[Value]]:
        """The sample as a request has it, shape (N, inputs)."""
        rows = self.sample.rows if self.sample else []
        return [[None if isinstance(value, float) and math.isnan(value) else value for value in row] for row in rows]

    @property
    def row_type(self) -> Any:
        """The type of one row in JSON, for annotations: a list in the order of the inputs."""
        return Annotated[Any, GetPydanticSchema(lambda _source, _handler: self._row_schema())]

    @property
    def list_rows_type(self) -> Any:
        """The type of one or more rows, shape (N, inputs), each a list: what hot paths try first.

        `rows_type` costs 2 µs more for a body of JSON, which pydantic must turn into Python objects for it.
        """
        # Only the first invalid row is reported: collecting those of 50,000 rows would take seconds.
        row: Any = self.row_type
        return Annotated[list[row], Field(min_length=1), FailFast()]

    @property
    def rows_type(self) -> Any:
        """The same, and a row may also be an object of named values."""
        return Annotated[self.list_rows_type, BeforeValidator(self._in_order)]

    @cached_property
    def validator(self) -> TypeAdapter[list[list[Value]]]:
        """Validates JSON or Python rows."""
        return TypeAdapter(self.rows_type)

    def in_order(self, row: Mapping[str, Value], number: int | None = None) -> list[Value]:
        """A named row as a list; `number` is the row that an error names."""
        try:
            return [row[name] for name in self.names]
        except KeyError as exc:
            context = {"field": exc.args[0]} | ({} if number is None else {"row": number})
            raise PydanticCustomError("named_row", "is missing", context) from None

    def _in_order(self, rows: Any) -> Any:
        if isinstance(rows, list) and dict in map(type, rows):
            return [self.in_order(row, n) if isinstance(row, dict) else row for n, row in enumerate(rows)]
        return rows

    def _row_schema(self) -> CoreSchema:
        names = tuple(self.names)

        def column(each: Input) -> CoreSchema:
            return core_schema.custom_error_schema(
                each.value_schema(),
                custom_error_type="card_column",
                custom_error_message=each.rule.replace("{", "(").replace("}", ")"),
                custom_error_context={"names": names},
            )

        length = len(self.inputs)
        described = {"description": self.described_row()}
        metadata = {"pydantic_js_updates": described}
        rules = [each.model_copy(update={"name": "", "unit": None, "description": None}) for each in self.inputs]
        # Columns of one kind need no tuple, whose validation takes longer.
        if all(rule == rules[0] for rule in rules):
            return core_schema.list_schema(
                column(self.inputs[0]), min_length=length, max_length=length, metadata=metadata
            )
        columns = {"prefixItems": [each.value_json_schema() for each in self.inputs]}
        return core_schema.chain_schema(
            [
                core_schema.list_schema(core_schema.any_schema(), min_length=length, max_length=length),
                core_schema.tuple_schema([column(each) for each in self.inputs]),
            ],
            metadata={"pydantic_js_updates": described | columns},
        )

    def described_row(self) -> str:
        """The columns' names, with their units."""
        units = {each.unit for each in self.inputs}
        if len(units) == 1 and (unit := units.pop()):
            return f"{', '.join(self.names)} in {unit}"
        return ", ".join(f"{each.name} in {each.unit}" if each.unit else each.name for each in self.inputs)


def load(path: Path) -> Card:
    """The card at `path`, or in the folder `path`.

    Raises:
        StartupError: there is none, or it is malformed; names field and line.
    """
    if path.is_dir():
        path /= "model.toml"
    try:
        text = path.read_text(encoding="utf-8")
        card = Card.model_validate(tomllib.loads(text))
    except OSError as exc:
        raise StartupError(f"there is no model card at {path} ({ADD})") from exc
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise StartupError(f"{path} is not TOML: {exc}") from exc
    except ValidationError as exc:
        raise StartupError(f"{path}: {'; '.join(_fault(text, error) for error in exc.errors())}") from exc
    card._folder = path.parent
    return card


def check_file(path: Path, sha256: str | None) -> str:
    """The file's SHA-256. Raises StartupError if it is missing, no model at all, or not the one of the card."""
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise StartupError(f"there is no model at {path} (build it with: python -m models.build)") from exc
    if content.startswith(b"version https://git-lfs"):
        raise StartupError(f"{path} is a Git LFS pointer, not a usable ONNX model (fetch it with: git lfs pull)")
    if content[:1] == b"\x80" and content[-1:] == b".":
        raise StartupError(f"{path} is a pickle file, which is never loaded (save it with skops, then models.add)")
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256:
        raise StartupError(f"{path} has the SHA-256 {digest[:12]}…, the card says {sha256[:12]}… ({ADD})")
    return digest


def _of_file(value: Any) -> Any:
    try:
        return load(Path(value)) if isinstance(value, str | Path) else value
    except StartupError as exc:
        raise ValueError(str(exc)) from exc


def _has_rows(card: Card) -> Card:
    if card.image is not None:
        raise ValueError(f"the model of {card.name} takes images, and this service rows")
    return card


def _has_image(card: Card) -> Card:
    if card.image is None:
        raise ValueError(f"the model of {card.name} takes rows, and this service images")
    return card


# The types of settings: of the path, or the folder, of a card. A faulty card is a faulty setting, reported like others.
TabularCard = Annotated[Card, NoDecode, BeforeValidator(_of_file), AfterValidator(_has_rows)]
ImageCard = Annotated[Card, NoDecode, BeforeValidator(_of_file), AfterValidator(_has_image)]


def default_card(model_file: Path | None = None, labels: Sequence[str] | None = None, task: Task | None = None) -> Card:
    """The built-in card for a model of the specified variables; `labels` and `task` replace those of the card."""
    card = load(DEFAULT_CARD)
    changes: dict[str, Any] = {}
    if model_file is not None:
        changes |= {"file": str(model_file.absolute()), "name": model_file.stem}
    if labels is not None:
        changes["output"] = card.output.model_copy(update={"labels": list(labels)})
    if task is not None:
        changes["task"] = task
    return card.model_copy(update=changes)


def _fault(text: str, error: Mapping[str, Any]) -> str:
    where = ".".join(map(str, error["loc"]))
    line = _line_of(text, error["loc"])
    reason = error["msg"].removeprefix("Value error, ")
    return f"{f'line {line}: ' if line else ''}{f'{where}: ' if where else ''}{reason}"


def _line_of(text: str, location: Sequence[str | int]) -> int | None:
    """The line of a field, or of the table that should have it; None where neither is written in the usual form."""
    keys = [part for part in location if isinstance(part, str)]
    index = next((part for part in location if isinstance(part, int)), 0)
    table, found, seen = "", None, -1
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\[?\s*([\w.-]+)\s*\]", line):
            table = header[1]
            seen += table == (keys[:1] or [""])[0]
            if keys and table == keys[0] and seen == index * line.lstrip().startswith("[["):
                found = number
        key = re.match(r"\s*([\w-]+)\s*=", line)
        is_field = key and keys and [*filter(None, [table]), key[1]] == keys[: 2 if table else 1]
        if is_field and (table != "inputs" or seen == index):
            return number
    return found


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output as the model declares it; None is a dimension of any size.

    dtype: as ONNX Runtime writes it without `tensor(…)`: float, double, int64, string, bool; or the whole type of a
    sequence of maps, which ZipMap makes.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join('N' if size is None else str(size) for size in self.shape)}]"


@dataclass(frozen=True, slots=True)
class Part:
    """The columns, first to last and exclusive, that one input of the model takes."""

    tensor: Tensor
    columns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Binding:
    """Which input of the model takes which columns of a row, and which output has the answer."""

    parts: tuple[Part, ...]
    output: Tensor


_ACCEPTED = {"float32": ("float", "double"), "int64": ("int64", "int32"), "string": ("string",), "bool": ("bool",)}


def bind(card: Card, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Binding:
    """Find the card's inputs and output among those of the model. Raises StartupError with the one difference."""
    parts = tuple(_parts(card, inputs))
    for part in parts:
        for column in part.columns:
            dtype = card.inputs[column].dtype
            if part.tensor.dtype not in _ACCEPTED[dtype]:
                names = f"{card.names[column]} is {dtype} in the card"
                raise StartupError(f"{card.name}: {names}, but the model's input is {part.tensor} ({ADD})")
    return Binding(parts, _output(card, outputs))


def _parts(card: Card, inputs: Sequence[Tensor]) -> list[Part]:
    columns = range(len(card.inputs))
    found = f"the model has {', '.join(map(str, inputs))}"
    by_name = {tensor.name: tensor for tensor in inputs}
    if any(each.tensor for each in card.inputs):
        named = {each.tensor or each.name for each in card.inputs}
        if named != by_name.keys():
            raise StartupError(f"{card.name}: the card has the inputs {', '.join(sorted(named))}, {found} ({ADD})")
        parts = [
            Part(tensor, tuple(i for i in columns if (card.inputs[i].tensor or card.names[i]) == name))
            for name, tensor in by_name.items()
        ]
    elif len(inputs) == len(columns) and len(columns) > 1:
        if by_name.keys() != set(card.names):
            raise StartupError(f"{card.name}: the card has the inputs {', '.join(card.names)}, {found} ({ADD})")
        parts = [Part(by_name[name], (column,)) for column, name in enumerate(card.names)]
    else:
        parts, start = [], 0
        for tensor in inputs:
            size = tensor.shape[1] if len(tensor.shape) == 2 else 1
            end = start + size if size is not None else len(columns)
            parts.append(Part(tensor, tuple(range(start, end))))
            start = end
        if start != len(columns):
            raise StartupError(f"{card.name}: the card has {len(columns)} inputs, {found} ({ADD})")
    for part in parts:
        shape = part.tensor.shape
        widths = [(), (None,), (len(part.columns),)]
        if not shape or shape[0] not in (None, 1) or shape[1:] not in widths:
            raise StartupError(f"{card.name}: {part.tensor} does not take rows of {len(part.columns)} columns ({ADD})")
        if len(shape) == 1 and len(part.columns) != 1:
            raise StartupError(f"{card.name}: {part.tensor} takes one column, not {len(part.columns)} ({ADD})")
    return parts


def _output(card: Card, outputs: Sequence[Tensor]) -> Tensor:
    found = f"the model has {', '.join(map(str, outputs))}"
    if card.output.tensor is not None:
        named = [tensor for tensor in outputs if tensor.name == card.output.tensor]
        if not named:
            raise StartupError(f"{card.name}: the card names the output {card.output.tensor}, {found} ({ADD})")
        outputs = named
    fitting = [tensor for tensor in outputs if _fits(card, tensor)]
    if not fitting:
        raise StartupError(f"{card.name}: no output has {card.width} numbers for a row, {found} ({ADD})")
    if len(fitting) > 1:
        raise StartupError(f"{card.name}: output.tensor must name one of several outputs, {found}")
    return fitting[0]


def _fits(card: Card, tensor: Tensor) -> bool:
    if tensor.dtype.startswith("seq(map("):
        return card.task is not Task.REGRESSION
    numbers = ("float", "double", "int64") if card.task is Task.REGRESSION else ("float", "double")
    # A classifier of two classes may give only the probability of the second.
    widths = {card.width, None} | ({1} if card.width == 2 and card.task is Task.CLASSIFICATION else set())
    is_column = len(tensor.shape) == 1 and 1 in widths
    return tensor.dtype in numbers and (is_column or (len(tensor.shape) == 2 and tensor.shape[1] in widths))


def json_schema() -> str:
    """The JSON Schema of a card, as it is committed in docs/model-card.schema.json."""
    return json.dumps(Card.model_json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    print(json_schema(), end="")  # noqa: T201

"""Adds a model of your own: python -m models.add MODEL. Writes models/artifacts/NAME: model.toml and 1/model.onnx.

That is the layout of a model server, which takes the folder as it is; 1 also has the SavedModel, if it was one.

What a card needs is read from the model itself, from a CSV file with rows (`--sample`), and from the answers to those
rows. The card is checked as every service does at its start; what does not pass is refused in one line.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from models.card import Column, Description, toml
from models.files import BuildError, locked, replacing, say, sha256_of
from models.images import SUFFIXES, describe_image
from models.rows import Table, describe, read
from serving_common import cards
from serving_common.cards import Card, Task, Tensor, check_file
from serving_common.errors import StartupError
from serving_common.onnx import open_session
from serving_common.tabular import TabularModel, tensors_of

HERE = Path(__file__).parent
FILE = "1/model.onnx"
DTYPES = {
    "float": "float32",
    "double": "float32",
    "int64": "int64",
    "int32": "int64",
    "string": "string",
    "bool": "bool",
}
FLOATS = ("float", "double")
SAMPLE_ROWS = 3


@dataclass(frozen=True)
class Converted:
    """A model as ONNX, with what its own format knows beyond it."""

    model: Path
    columns: list[str] | None = None  # their names
    labels: list[str] | None = None
    is_regression: bool | None = None
    notes: list[str] = field(default_factory=list)
    answers: Any = None  # rows -> what the library itself predicts


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0: added; 1: refused, with one line on stderr; 2: bad arguments."""
    options = parse(arguments)
    try:
        screen = add(options)
    except (BuildError, StartupError, OSError) as exc:
        say(f"error: {' '.join(str(exc).split())}")
        return 1
    except ModuleNotFoundError as exc:
        say(f"error: {exc.name} is not installed: run `make setup`")
        return 1
    print(screen)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m models.add", description="Adds a model of your own, with its card."
    )
    argument = parser.add_argument
    argument("model", type=Path, metavar="MODEL", help="a .onnx or .skops file, or the folder of a SavedModel")
    argument(
        "--sample",
        type=Path,
        metavar="ROWS.csv",
        help="rows, with a header: names, ranges and the card's sample; or a photograph",
    )
    argument("--inputs", nargs="+", metavar="NAME", help="several of the model's inputs, in the order of a row")
    argument("--target", metavar="COLUMN", help="of the CSV file, not an input; default: a last column too many")
    argument(
        "--labels",
        nargs="+",
        metavar="LABEL",
        help="of the classes, in the order of the model's numbers; or a file of them: a JSON list, or lines",
    )
    argument("--name", help="default: that of the file")
    argument("--task", choices=[each.value for each in Task], help="default: read from the model's outputs")
    argument("--value", metavar="NAME", help="of what a regression gives")
    argument("--unit", help="of what a regression gives")
    argument("--output-tensor", metavar="NAME", help="the model's output to use, where several fit")
    argument("--signature", default="serving_default", metavar="NAME", help="of a SavedModel")
    argument("--trust", nargs="+", default=[], metavar="TYPE", help="types in a .skops file that you know and trust")
    argument("--mean", nargs=3, type=float, metavar="X", help="of an image model's channels; default: ImageNet's")
    argument("--std", nargs=3, type=float, metavar="X", help="of an image model's channels; default: ImageNet's")
    argument("--resize", choices=["stretch", "crop"], default="stretch", help="how images get an image model's size")
    argument("--output", type=Path, default=HERE / "artifacts", metavar="DIR", help="default: models/artifacts")
    return parser.parse_args(arguments)


def labels_from(words: list[str] | None) -> list[str] | None:
    """The labels of --labels: each an argument, all in one (stay,churn), or in the file that is named."""
    if not words or len(words) > 1:
        return words
    path = Path(words[0])
    if path.suffix not in (".json", ".txt"):
        return [label.strip() for label in words[0].split(",")]
    text = path.read_text(encoding="utf-8")
    try:
        labels = (
            json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines() if line.strip()]
        )
    except ValueError as exc:
        raise BuildError(f"{path} is not JSON: {exc} (give a list of names)") from exc
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise BuildError(f"{path} is not a list of names (give the classes in the order of the model's numbers)")
    return labels


def add(options: argparse.Namespace) -> str:
    """Add the model; one screen of what was understood.

    Raises:
        BuildError, StartupError: the model is refused; one line with the next step.
        OSError: a file cannot be read or written.
    """
    name = options.name or re.sub(r"[^A-Za-z0-9_.-]+", "_", options.model.resolve().stem)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", name):
        raise BuildError(f"{name!r} cannot name a folder (choose letters and digits with --name)")
    options.labels = labels_from(options.labels)
    is_photograph = options.sample is not None and options.sample.suffix.lower() in SUFFIXES
    table = read(options.sample) if options.sample and not is_photograph else None
    with locked(options.output), replacing(options.output / name) as folder:
        target = folder / FILE
        target.parent.mkdir(parents=True)
        source = convert(options, target, table)
        adapt(source)
        session = open_session(source.model)
        inputs = in_order(tensors_of(session.get_inputs()), options.inputs)
        outputs = tensors_of(session.get_outputs())
        if any(len(tensor.shape) == 4 for tensor in inputs):
            description = describe_image(options, name, session, folder, inputs, outputs)
        else:
            description = describe_rows(options, name, source, table, session, inputs, outputs)
        description = replace(description, sha256=sha256_of(target), file=FILE)
        (folder / "model.toml").write_text(toml(description), encoding="utf-8")
        card = cards.load(folder)
        if card.image is None:
            description = record(description, card, source, table)
            (folder / "model.toml").write_text(toml(description), encoding="utf-8")
            TabularModel.load(cards.load(folder))
    patterns = "07" if card.image else "03 04 06"
    return f"""{screen_of(description, inputs, outputs)}

added {options.output / name}
next: make demo PATTERNS="{patterns}" MODEL={name}"""


def convert(options: argparse.Namespace, target: Path, table: Table | None) -> Converted:
    """The model as ONNX at `target`."""
    path: Path = options.model
    if not path.exists():
        raise BuildError(f"there is no file {path} (give the path of a model)")
    if path.is_dir():
        if not (path / "saved_model.pb").is_file():
            raise BuildError(f"{path} is a folder without saved_model.pb (give a SavedModel, or a file)")
        from models.add_saved_model import to_onnx

        shutil.copytree(path, target.parent, dirs_exist_ok=True)  # for TensorFlow Serving
        return Converted(target, notes=to_onnx(path, options.signature, target))
    check_file(path, None)
    if path.suffix == ".skops":
        from models.add_skops import to_onnx as skops_to_onnx  # scikit-learn, too

        return Converted(target, **skops_to_onnx(path, options.trust, target, table))
    if path.suffix != ".onnx":
        raise BuildError(f"{path} is not .onnx, .skops or a SavedModel folder (export it to one of them)")
    shutil.copyfile(path, target)
    return Converted(target)


def in_order(inputs: list[Tensor], names: list[str] | None) -> list[Tensor]:
    """The model's inputs in this order, which a SavedModel does not have."""
    if names is None:
        return inputs
    by_name = {tensor.name: tensor for tensor in inputs}
    if by_name.keys() != set(names) or len(names) != len(inputs):
        raise BuildError(f"the model has the inputs {', '.join(by_name)} (name each of them once with --inputs)")
    return [by_name[name] for name in names]


def adapt(source: Converted) -> None:
    """Change what exporters write by default and services cannot use, and note it.

    Maps of probabilities become the matrix that they are made from. Text is put into lower case by the locale C.UTF-8:
    the default, en_US.UTF-8, is not in slim images.
    """
    try:
        model = onnx.load(source.model)
    except Exception as exc:
        raise BuildError(f"the file is not a usable ONNX model: {exc} (export it again)") from exc
    changes = []
    outputs = {output.name: output for output in model.graph.output}
    for node in [each for each in model.graph.node if each.op_type == "ZipMap" and each.output[0] in outputs]:
        count = sum(len(each.ints) + len(each.strings) for each in node.attribute)
        matrix = onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, ["N", count])
        outputs[node.output[0]].CopyFrom(matrix)
        model.graph.node.remove(node)
        changes.append("ZipMap removed: the model gives a matrix of probabilities now")
    for node in model.graph.node:
        if node.op_type == "StringNormalizer" and not any(each.name == "locale" for each in node.attribute):
            node.attribute.append(onnx.helper.make_attribute("locale", "C.UTF-8"))
            changes.append("the locale of its text is C.UTF-8 now")
    if changes:
        onnx.save(model, source.model)
        source.notes.extend(dict.fromkeys(changes))


def classes_in(path: Path) -> list[str] | None:
    """The labels that the graph's classifier names."""
    for node in reversed(onnx.load(path, load_external_data=False).graph.node):
        for attribute in node.attribute:
            if attribute.name in ("classlabels_strings", "classlabels_int64s", "classlabels_ints"):
                if attribute.strings:
                    return [label.decode() for label in attribute.strings]
                if attribute.ints:
                    return [str(label) for label in attribute.ints]
    return None


def describe_rows(
    options: argparse.Namespace,
    name: str,
    source: Converted,
    table: Table | None,
    session: Any,
    inputs: list[Tensor],
    outputs: list[Tensor],
) -> Description:
    """What a card of rows says, without the expected answers."""
    notes, unknown = list(source.notes), []
    if len(inputs) > 1 and options.inputs is None and any(tensor.shape[1:] not in ((), (1,)) for tensor in inputs):
        widths = ", then ".join(
            f"{tensor.shape[1:][0] if tensor.shape[1:] else 1} of {tensor.name}" for tensor in inputs
        )
        unknown.append(f"the order of the inputs: a row has {widths} (give it with --inputs)")
    columns, column_unknown = columns_of(inputs, source, table)
    unknown += column_unknown
    target = None
    if table is not None:
        columns, target, table_notes = describe(columns, table, options.target)
        notes += table_notes
        rows = [[column.values[row] for column in columns] for row in sample_rows(columns, len(table.rows))]
    else:
        unknown.append("real rows: the sample is made up (give some with --sample rows.csv)")
        rows = [[{"string": "a", "bool": True, "int64": 1}.get(column.dtype, 1.0) for column in columns]]
    task = Task(options.task) if options.task else None
    labels = options.labels or source.labels or classes_in(source.model)
    if labels is None and target is not None and any(isinstance(value, str) for value in target):
        labels = sorted({str(value) for value in target})
    output = output_of(options, outputs, labels, task)
    [numbers] = np.atleast_2d(run_once(session, columns, inputs, output, rows[:1]).astype(float))
    width = len(numbers)
    if labels is None and width > 1 and task is None and not is_distribution(numbers):
        shown = ", ".join(f"{number:.3g}" for number in numbers[:5])
        raise BuildError(f"{output} gives no probabilities: {shown} (a card has one value, or classes: --labels)")
    if labels is None and target is not None and len(set(target)) == width > 1:
        labels = [str(value) for value in sorted(set(target))]
    regression = source.is_regression if source.is_regression is not None else (width == 1 and not labels)
    task = task or (Task.REGRESSION if regression else Task.CLASSIFICATION)
    if task is Task.REGRESSION:
        labels = None
        if options.value is None:
            unknown.append(f"the name of the value: {output.name!r} is the output's (give it with --value)")
    elif labels is None:
        labels = [str(number) for number in range(max(width, 2))]
        unknown.append("the labels of the classes (give them with --labels)")
    expected_width = {Task.ONE_VS_REST: 1}.get(task, max(width, 2))
    if labels is not None and len(labels) != expected_width:
        what = (
            "a one-vs-rest model has one label"
            if task is Task.ONE_VS_REST
            else f"the model has {expected_width} classes"
        )
        raise BuildError(f"{what}, but {len(labels)} are given: {', '.join(labels)} (give them all with --labels)")
    return Description(
        name=name,
        task=task.value,
        columns=columns,
        output_tensor=output.name,
        labels=labels,
        value=(options.value or output.name) if task is Task.REGRESSION else None,
        unit=options.unit,
        rows=rows,
        notes=notes,
        unknown=unknown,
    )


def columns_of(inputs: list[Tensor], source: Converted, table: Table | None) -> tuple[list[Column], list[str]]:
    """A column for each number of the model's inputs, and what could not be known."""
    columns: list[Column] = []
    unknown: list[str] = []
    is_per_column = len(inputs) > 1 and all(tensor.shape[1:] in ((), (1,)) for tensor in inputs)
    for tensor in inputs:
        if tensor.dtype not in DTYPES:
            raise BuildError(f"the input {tensor} is none of {', '.join(DTYPES)} (add a Cast to the model)")
        if len(tensor.shape) not in (1, 2) or tensor.shape[0] not in (None, 1):
            raise BuildError(f"the input {tensor} does not take rows (export it with inputs of shape (N, columns))")
        width = tensor.shape[1] if len(tensor.shape) == 2 else 1
        if width is None:
            if len(inputs) > 1 or (table is None and source.columns is None):
                raise BuildError(f"the width of {tensor} is not in the model (give rows with --sample rows.csv)")
            width = len(source.columns) if source.columns else len(table.header) if table else 0
        dtype = DTYPES[tensor.dtype]
        if is_per_column or (width == 1 and source.columns is None):
            names = [tensor.name]
        else:
            prefix = "x" if len(inputs) == 1 else f"{tensor.name}_"
            names = [f"{prefix}{i}" for i in range(width)]
        tensor_name = None if is_per_column or len(inputs) == 1 else tensor.name
        columns += [Column(each, dtype, tensor=tensor_name) for each in names]
    if source.columns and len(source.columns) == len(columns):
        columns = [replace(column, name=each) for column, each in zip(columns, source.columns, strict=True)]
    elif table is None and not is_per_column:
        unknown.append("the names of the columns (the header of --sample rows.csv has them)")
    return columns, unknown


def sample_rows(columns: list[Column], count: int) -> list[int]:
    """The first rows, and the first one with a missing value."""
    chosen = list(range(min(SAMPLE_ROWS, count)))
    missing = [row for row in range(count) if any(is_missing(column.values[row]) for column in columns)]
    return sorted({*chosen, *missing[:1]})


def is_missing(value: object) -> bool:
    return isinstance(value, float) and np.isnan(value)


def is_distribution(numbers: Any) -> bool:
    """Whether these are the probabilities of all classes."""
    return bool((numbers >= -1e-6).all() and abs(numbers.sum() - 1) < 1e-3)


def output_of(
    options: argparse.Namespace, outputs: list[Tensor], labels: list[str] | None, task: Task | None
) -> Tensor:
    """The output with the answer."""
    found = f"the model has the outputs {', '.join(map(str, outputs))}"
    if options.output_tensor is not None:
        outputs = [tensor for tensor in outputs if tensor.name == options.output_tensor]
        if not outputs:
            raise BuildError(f"there is no output {options.output_tensor}; {found} (choose one with --output-tensor)")
    floats = [tensor for tensor in outputs if tensor.dtype in FLOATS and len(tensor.shape) in (1, 2)]
    candidates = floats or [tensor for tensor in outputs if tensor.dtype == "int64" and task is Task.REGRESSION]
    if len(candidates) > 1 and labels is not None:
        # A classifier's width tells its probabilities from other numbers.
        candidates = [tensor for tensor in candidates if tensor.shape[1:] == (len(labels),)] or candidates
    if not candidates:
        raise BuildError(f"{found}, none with numbers to answer (export it with probabilities)")
    if len(candidates) > 1:
        raise BuildError(f"several outputs fit; {found} (choose one with --output-tensor)")
    return candidates[0]


def run_once(session: Any, columns: list[Column], inputs: list[Tensor], output: Tensor, rows: list[list[Any]]) -> Any:
    numpy_types: dict[str, Any] = {"float": np.float32, "double": np.float64, "int64": np.int64, "int32": np.int32}
    feeds, start = {}, 0
    for tensor in inputs:
        width = tensor.shape[1] if len(tensor.shape) == 2 and tensor.shape[1] is not None else None
        end = start + width if width else start + 1 if len(tensor.shape) == 1 else len(columns)
        dtype = numpy_types.get(tensor.dtype, bool if tensor.dtype == "bool" else object)
        values = np.array([row[start:end] for row in rows], dtype)
        feeds[tensor.name] = values[:, 0] if len(tensor.shape) == 1 else values
        start = end
    try:
        [answer] = session.run([output.name], feeds)
    except Exception as exc:
        reason = str(exc).splitlines()[0]
        raise BuildError(
            f"the model cannot be run on the first row: {reason} (check --sample, or export it again)"
        ) from exc
    return answer


def record(description: Description, card: Card, source: Converted, table: Table | None) -> Description:
    """The description with what the model answers to the sample, compared with the library that made the model."""
    model = TabularModel.load(card)
    answer = model.run(model.encode(card.sample_rows)).astype(float)
    # Of a single number p for two classes `run` makes 1 - p and p.
    if card.task is Task.CLASSIFICATION and np.allclose(answer.sum(axis=1), 1) and np.abs(answer - 0.5).max() > 0.501:
        shown = ", ".join(f"{number:.3g}" for number in answer[:, -1])
        raise BuildError(f"{description.output_tensor} gives no probabilities: {shown} (export the model with them)")
    notes = list(description.notes)
    if source.answers is not None and table is not None:
        count = min(len(table.rows), 1000)
        rows: list[list[Any]] = [[column.values[row] for column in description.columns] for row in range(count)]
        got = model.run(model.encode(rows))
        wanted = np.asarray(source.answers(rows), float).reshape(got.shape)
        difference = float(np.max(np.abs(got - wanted) / np.maximum(1, np.abs(wanted))))
        if not difference <= 1e-3:
            raise BuildError(
                f"as ONNX it differs from scikit-learn by {difference:.1e} (export it to ONNX in another way)"
            )
        notes.append(f"equal to scikit-learn's own answers to {count} rows within {max(difference, 1e-9):.0e}")
    return replace(description, expected=answer.tolist(), notes=notes)


def screen_of(description: Description, inputs: list[Tensor], outputs: list[Tensor]) -> str:
    """What was understood and what not, to read."""
    lines = [
        f"{description.name}: {description.task}",
        f"  model inputs   {'; '.join(map(str, inputs[:4]))}{'; …' if len(inputs) > 4 else ''}",
        f"  model outputs  {'; '.join(map(str, outputs))}; used: {description.output_tensor}",
    ]
    for number, column in enumerate(description.columns[:12]):
        lines.append(f"  {'columns' if not number else '':<14} {column}")
    if len(description.columns) > 12:
        lines.append(f"  {'':<14} … {len(description.columns)} in all")
    if description.labels:
        shown = ", ".join(description.labels[:10])
        lines.append(
            f"  labels         {shown}{f', … {len(description.labels)} in all' if len(description.labels) > 10 else ''}"
        )
    if description.value:
        lines.append(f"  value          {description.value}{f' in {description.unit}' if description.unit else ''}")
    if description.expected:
        row = ", ".join(f"{value}" for value in description.rows[0][:6])
        answer = ", ".join(f"{number:.6g}" for number in description.expected[0][:6])
        lines.append(f"  sample         [{row}{', …' if len(description.rows[0]) > 6 else ''}] -> [{answer}]")
    lines += [f"  note           {note}" for note in description.notes]
    lines += [f"  not known      {unknown}" for unknown in description.unknown]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""Breaks patterns on this machine, under load, and keeps the ledger: `python -m scripts.chaos 03 06`, or `make prove`.

Every pattern runs as the processes of `make up`, which are started again when they die, as `restart: always` would.
Exit code 0 if nothing was lost, done twice or stuck, and nothing failed that the faults do not explain; 1 otherwise.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.chaos.faults import RUN_DIR
from scripts.chaos.ledger import ledger_table, write
from scripts.chaos.proof import Form, Proof
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.stack import StackError, run
from scripts.devstack.table import ROOT, Pattern
from scripts.devstack.terminal import INTERRUPTED, make_console, parsed, parser_of_patterns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

# Modules with an `async def prove(proof: Proof) -> None`. Loaded when needed: each wants its pattern's packages.
PROOFS = {
    "02": "scripts.chaos.synchronous",
    "03": "scripts.chaos.asynchronous",
    "04": "scripts.chaos.batch",
    "06": "scripts.chaos.horizontal_microservice",
    "07": "scripts.chaos.sync_async",
}


def main(
    argv: Sequence[str] | None = None,
    table: Mapping[str, Pattern] = PATTERNS,
    proofs: Mapping[str, str] = PROOFS,
) -> int:
    """Exit code: 0 if every column that must be 0 is, 1 if not, 130 after Ctrl-C."""
    parser = parser_of_patterns(__doc__, proofs)
    parser.add_argument(
        "--form", type=Form, choices=[*Form], default=Form.SHORT, help="how many faults (default short)"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "prove-results", help="folder for ledger.md, ledger.json")
    options = parsed(parser, argv, proofs)
    return run(prove_all(options.patterns, table, proofs, form=options.form, output=options.output))


async def prove_all(
    numbers: Sequence[str], table: Mapping[str, Pattern], modules: Mapping[str, str], *, form: Form, output: Path
) -> int:
    """Run the proofs of these patterns one after the other, and print and write the ledger."""
    console = make_console()
    proofs = []
    try:
        for number in numbers:
            console.rule(f"{number} {table[number].title}", characters="-")
            proofs.append(await prove(number, table[number].title, modules[number], form, console))
    except StackError as exc:
        console.print(f"make prove: {exc}", markup=False, style="red")
        return 1
    except asyncio.CancelledError:
        console.print("Interrupted; all stopped.")
        return INTERRUPTED
    console.print(ledger_table(proofs))
    for proof in proofs:
        for answer in proof.failed[:5]:
            console.print(f"FAILED: {proof.number} {answer.kind} {answer.problem}", markup=False, style="bold red")
        if proof.error:
            console.print(f"FAILED: {proof.number} {proof.error}", markup=False, style="bold red")
    written = write(proofs, output, form=form)
    console.print(f"Written: {', '.join(map(str, written))}. Logs of all processes: {RUN_DIR / 'logs'}")
    return 0 if all(proof.is_kept for proof in proofs) else 1


async def prove(number: str, title: str, module: str, form: Form, console: Console) -> Proof:
    """One pattern, from its start to its ledger line. Raises StackError if it does not even start."""
    proof = Proof(
        number=number,
        title=title,
        form=form,
        say=lambda line: console.print(line, markup=False, soft_wrap=True),
    )
    try:
        await importlib.import_module(module).prove(proof)
    except StackError:
        raise
    except Exception as exc:  # one pattern that cannot be proven must not hide what the others have shown
        logging.exception("the proof of %s broke off", number)
        while isinstance(exc, ExceptionGroup):  # of the clients' task group
            exc = exc.exceptions[0]
        proof.error = f"broke off: {type(exc).__name__}: {exc}"
    proof.seconds = time.monotonic() - proof.started
    return proof


if __name__ == "__main__":
    sys.exit(main())

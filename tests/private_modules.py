"""A contract for import-linter: modules and packages whose names begin with `_` are imported in their own room only."""

from __future__ import annotations

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, output


class PrivateModules(Contract):
    """`steerlab.room._private` may be imported from `steerlab.room` and what lies below it."""

    type_name = "private"

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Every import of a private module from outside its room."""
        broken = [
            (importer, imported)
            for imported in sorted(graph.modules)
            if (room := room_of(imported)) is not None
            for importer in sorted(graph.find_modules_that_directly_import(imported))
            if importer != room and not importer.startswith(f"{room}.")
        ]
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """One line an import."""
        for importer, imported in check.metadata["broken"]:
            output.print_error(f"{importer} imports {imported}, which is private to its room.")


def room_of(module: str) -> str | None:
    """The package that owns the first private part of a module's name; None where no part is private."""
    parts = module.split(".")
    private = [number for number, part in enumerate(parts) if part.startswith("_") and part != "__main__"]
    return ".".join(parts[: private[0]]) if private else None

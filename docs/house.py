"""Print the rooms of plo, floor by floor, and what each of them imports: `python docs/house.py`, or `make house`.

The floors are those of the import contract in pyproject.toml, which tests/test_house.py checks. Imports inside functions
count as any other; those for type checkers alone do not.
"""

import tomllib
from pathlib import Path

import grimp

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def floors() -> list[list[str]]:
    """Return the modules directly in plo, floor by floor, the ground last."""
    contracts = tomllib.loads(PYPROJECT.read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[f"plo.{name}" for name in layer.replace("|", " ").replace(":", " ").split()] for layer in layers]


def main() -> None:
    """Print one line a room: its name, its number of modules, and the rooms that it imports with the number of imports."""
    graph = grimp.build_graph("plo", exclude_type_checking_imports=True)
    *upper, ground = floors()
    room_of = {
        module: "ground" if room in ground else room
        for room in [*(room for floor in upper for room in floor), *ground]
        for module in {room, *graph.find_descendants(room)}
    }
    imports: dict[str, dict[str, int]] = {}
    for importer, room in room_of.items():
        for imported in graph.find_modules_directly_imported_by(importer):
            if (other := room_of.get(imported, room)) != room:
                count = imports.setdefault(room, {})
                count[other] = count.get(other, 0) + 1
    for floor in [*upper, ["ground"]]:
        for room in floor:
            size = sum(1 for home in room_of.values() if home == room)
            below = ", ".join(f"{name.removeprefix('plo.')} {n}" for name, n in sorted(imports.get(room, {}).items()))
            print(f"{room.removeprefix('plo.'):14}{size:3} modules  -> {below or 'nothing'}")
        print()


if __name__ == "__main__":
    main()

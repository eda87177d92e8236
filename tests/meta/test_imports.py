"""Who may import whom: house rules 1, 2, 3, 6 and 7 of CONTRIBUTING.md, on the syntax tree."""

from __future__ import annotations

import ast
import sys
from typing import Any

import pytest

from tests.meta.layers import PACKAGE_FLOORS, STORAGE_FLOORS, Floors
from tests.meta.source import PACKAGE, Import, Module, dotted, imports, modules, report

# Rule 1. The standard library counts too: what could touch a file, the network, a thread or the clock is out.
FORMAT_MAY_USE = {"numpy", "google.protobuf", "google_crc32c", "ml_dtypes"}
IMPURE = {
    *("asyncio", "concurrent", "ctypes", "fcntl", "glob", "http", "logging", "mmap", "multiprocessing", "os"),
    *(
        "pathlib",
        "random",
        "secrets",
        "select",
        "shutil",
        "signal",
        "socket",
        "subprocess",
        "tempfile",
        "time",
    ),
    *("urllib", "uuid"),
}

# Rule 3. Third-party package → the rooms, or parts of rooms, that may import it (None: all of them).
# A package that is not here needs a row first.
PACKAGES = {
    "numpy": None,
    "ml_dtypes": None,
    "google.protobuf": {"format", "graph"},
    "google_crc32c": {"checksums"},
    "fsspec": {"storage.generic", "storage.memory"},  # the memory backend shares fsspec's store
    "s3fs": {"storage.s3"},
    "botocore": {"storage.s3"},
    "aiobotocore": {"storage.s3"},
    "certifi": {"storage.s3", "storage.gcs"},  # where it is installed: the authorities of botocore, requests
    "gcsfs": {"storage.gcs"},
    "google.auth": {"storage.gcs"},  # tokens for reads; exceptions, raised by gcsfs's credentials
    "google.oauth2": {"storage.gcs"},
    "urllib3": {"storage.gcs"},  # with which google.auth asks for tokens
    "requests": {"storage.gcs"},  # its exceptions, raised by google.auth
    "yarl": {"storage.gcs"},  # aiohttp's URLs
    "aiohttp": {"storage.s3", "storage.gcs"},  # its exceptions; s3fs and gcsfs both use it
    "click": {"cli"},
    "rich": {"cli", "transfer", "view"},
    "tqdm": {"transfer"},  # if the caller asks for its bar
    "pytest": {"testing"},
    # Engines of training jobs that have no adapter of their own.
    "mpi4py": {"distributed.mpi"},
    "ray": {"distributed.ray"},
}

# Rule 6. Framework → the one room that may import it.
FRAMEWORKS = {
    "tensorflow": "tensorflow",
    "jax": "jax",
    "jaxlib": "jax",
    "flax": "jax",
    "torch": "torch",
    "keras": "keras",
    "safetensors": "safetensors",
    "lightning": "lightning",
    "lightning_fabric": "lightning",
}


def _package_of(found: Import) -> str:
    full = found.target if found.name is None else f"{found.target}.{found.name}"
    # Several packages share this name.
    several = ("google.protobuf", "google.auth", "google.oauth2")
    shared = next((name for name in several if full.startswith(name)), None)
    return shared or found.target.split(".")[0]


def _inside(module: Module, places: set[str]) -> bool:
    return any(module.short == place or module.short.startswith(place + ".") for place in places)


FLOORS = pytest.mark.parametrize(
    "floors", [PACKAGE_FLOORS, STORAGE_FLOORS], ids=["package", "inside storage"]
)


@FLOORS
def test_every_box_stands_on_a_floor(floors: Floors):
    report(
        [
            f"{module.at(1)}: '{box}' stands on no floor of {floors.title!r} in tests/meta/layers.py"
            for box, module in floors.boxes().items()
            if box not in floors.level
        ]
    )


@FLOORS
def test_imports_point_downwards(floors: Floors):
    report(
        [
            f"{found.where}: '{source}' may not import '{target}' ({found.target}), which stands on the same"
            f" floor or above: move the shared piece down"
            for (source, target), found in floors.arrows().items()
            if floors.level.keys() >= {source, target} and not floors.goes_down(source, target)
        ]
    )


def test_the_test_kit_is_not_imported_by_the_package():
    report(
        [
            f"{found.where}: {found.source.short} imports the test kit {found.target}"
            for found in imports()
            if found.internal and found.room == "testing" != found.source.room
        ]
    )


def test_the_public_face_is_not_imported_from_inside():
    report(
        [
            f"{found.where}: import '{found.name}' from the module that defines it"
            for found in imports()
            if found.target == PACKAGE and found.name not in (None, "__version__") and not found.type_only
        ]
    )


def test_format_is_pure():
    rows = []
    for found in imports():
        if found.source.room != "format":
            continue
        package = _package_of(found)
        if found.internal:
            if found.room not in ("format", "errors", "types", "checksums", "suggest", "frameworks"):
                rows.append(
                    f"{found.where}: format imports {found.target};"
                    f" it may use errors, types, checksums, suggest and frameworks only"
                )
        elif package in sys.stdlib_module_names:
            if package in IMPURE:
                rows.append(
                    f"{found.where}: format imports {package}: bytes in, objects out, nothing of the machine"
                )
        elif package not in FORMAT_MAY_USE:
            rows.append(
                f"{found.where}: format imports {package}; it may use {', '.join(sorted(FORMAT_MAY_USE))}"
            )
    report(rows)


def test_format_starts_no_thread():
    # A lock around a lazily built thing is what makes an object safe for concurrent use; that much is fine.
    rows = []
    for module in modules().values():
        if module.room != "format":
            continue
        rows += [
            f"{module.at(node.lineno)}: {dotted(node)}; of threading, format may use locks only"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Attribute)
            and dotted(node.value) == "threading"
            and node.attr not in ("Lock", "RLock")
        ]
    rows += [
        f"{found.where}: {found.name}; of threading, format may use locks only"
        for found in imports()
        if found.source.room == "format"
        and found.target == "threading"
        and found.name not in (None, "Lock", "RLock")
    ]
    report(rows)


def test_third_party_packages_stay_in_their_rooms():
    rows = []
    for found in imports():
        package = _package_of(found)
        if found.internal or package in sys.stdlib_module_names or package in FRAMEWORKS:
            continue
        if package not in PACKAGES:
            rows.append(
                f"{found.where}: {package} is in no row of PACKAGES: is it declared in pyproject.toml?"
            )
            continue
        places = PACKAGES[package]
        if places is not None and not _inside(found.source, places):
            rows.append(f"{found.where}: {package} may be imported in {', '.join(sorted(places))} only")
    report(rows)


def test_frameworks_stay_in_their_adapter():
    report(
        [
            f"{found.where}: {_package_of(found)} may be imported in {FRAMEWORKS[_package_of(found)]} only"
            for found in imports()
            if _package_of(found) in FRAMEWORKS and found.source.room != FRAMEWORKS[_package_of(found)]
        ]
    )


def test_no_import_cycles():
    # Imports for type checking count too: of modules in a circle, none can be understood without the others.
    graph: dict[str, set[str]] = {name: set() for name in modules() if name != PACKAGE}
    for found in imports():
        if found.target in graph and found.source.name in graph:
            graph[found.source.name].add(found.target)
    cycle = _find_cycle(graph)
    report(["import cycle: " + " → ".join(cycle)] if cycle else [])


def _find_cycle(graph: dict[str, set[str]]) -> list[str] | None:
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        for target in sorted(graph[name]):
            found = visit(target, [*path, name])
            if found:
                return found
        done.add(name)
        return None

    for start in sorted(graph):
        found = visit(start, [])
        if found:
            return found
    return None


def test_the_cycle_finder_finds_one():
    assert _find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert _find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def test_underscore_names_stay_in_their_room():
    rows: list[Any] = []
    for found in imports():
        if not found.internal or found.room == found.source.room:
            continue
        rows.extend(
            f"{found.where}: '{part}' belongs to room '{found.room}'; make it public there"
            for part in [*found.target.split("."), found.name or ""]
            if _is_private(part)
        )
    for module in modules().values():
        foreign = {
            found.alias
            for found in imports()
            if found.source is module and found.internal and found.name is None and found.room != module.room
        }
        rows.extend(
            f"{module.at(node.lineno)}: '{dotted(node)}' reaches into another room"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Attribute) and _is_private(node.attr) and dotted(node.value) in foreign
        )
    report(rows)


# Their classes stand in the place of the framework's, whose names they have: each is told by its package.
TAKE_THE_FRAMEWORKS_NAMES = ("tensorflow", "keras", "lightning")


def test_no_two_public_classes_share_a_name():
    places: dict[str, list[str]] = {}
    for module in modules().values():
        if module.room in TAKE_THE_FRAMEWORKS_NAMES:
            continue
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and not _is_private(node.name):
                places.setdefault(node.name, []).append(module.at(node.lineno))
    report(
        [
            f"class {name} is defined {len(found)} times: {', '.join(found)}; one word per thing"
            for name, found in sorted(places.items())
            if len(found) > 1
        ]
    )

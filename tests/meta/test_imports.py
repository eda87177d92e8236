"""Who may import whom: house rules 1, 2, 3, 6 and 7 of CONTRIBUTING.md, on the syntax tree."""

from __future__ import annotations

import ast
import sys

from tests.meta.source import PACKAGE, Import, dotted, imports, modules, report

# Low to high. A room imports only from rows above its own; the ground, `PEERS`, also within its row.
LAYERS = (
    {"errors", "types", "config", "checksums", "suggest"},
    {"format", "storage"},
    {"transfer"},
    {"bundle", "graph", "trackable"},
    {"directory", "distributed"},
    {"reading", "saving"},
    {"train", "serving"},
    {"torch", "jax", "tensorflow", "keras", "lightning", "safetensors"}
    | {"inspect_checkpoint", "view", "testing", "fleet"},
    {"cli"},
    {"__main__"},
    {"__init__"},
)
LEVEL = {room: level for level, row in enumerate(LAYERS) for room in row}
PEERS = LAYERS[0]

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

# Third-party package → the rooms that may import it. One that is not here needs a place in this table first.
PACKAGES = {
    "numpy": None,  # everywhere
    "ml_dtypes": None,
    "google.protobuf": {"format", "graph"},
    "google_crc32c": {"checksums"},
    "fsspec": {"storage", "testing"},
    "s3fs": {"storage", "testing"},
    "gcsfs": {"storage", "testing"},
    "aiohttp": {"storage"},
    "yarl": {"storage"},  # aiohttp's URLs
    "google.auth": {"storage"},  # what gcsfs's credentials raise
    "requests": {"storage"},
    "botocore": {"storage", "testing"},
    "aiobotocore": {"storage", "testing"},
    "urllib3": {"storage", "testing"},
    "click": {"cli"},
    "rich": {"cli", "transfer", "view"},
    "tqdm": {"transfer"},  # if the caller asks for its bar
    "pytest": {"testing"},
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
}


def _package_of(found: Import) -> str:
    full = found.target if found.name is None else f"{found.target}.{found.name}"
    # Several packages share this name.
    shared = next((name for name in ("google.protobuf", "google.auth") if full.startswith(name)), None)
    return shared or found.target.split(".")[0]


def test_every_room_has_a_place_in_the_layers():
    report(
        [
            f"{module.at(1)}: room '{module.room}' is in no row of LAYERS; give it one"
            for module in modules().values()
            if module.room not in LEVEL
        ]
    )


def test_imports_point_downwards():
    rows = []
    for found in imports():
        source = found.source.room
        if not found.internal or source == found.room or "__init__" in (source, found.room):
            continue
        if found.room == "testing":
            rows.append(f"{found.where}: {found.source.short} imports the test kit {found.target}")
        elif {source, found.room} <= PEERS and LEVEL[source] == LEVEL[found.room]:
            continue
        elif LEVEL.keys() >= {source, found.room} and LEVEL[found.room] >= LEVEL[source]:
            rows.append(
                f"{found.where}: room '{source}' may not import room '{found.room}' ({found.target}); "
                f"imports point towards errors, types and config: move the shared piece down"
            )
    report(rows)


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
            if found.room not in ("format", "errors", "types", "checksums"):
                rows.append(
                    f"{found.where}: format imports {found.target};"
                    f" it may use errors, types and checksums only"
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
        rooms = PACKAGES[package]
        if rooms is not None and found.source.room not in rooms:
            rows.append(f"{found.where}: {package} may be imported in {', '.join(sorted(rooms))} only")
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
    graph: dict[str, set[str]] = {name: set() for name in modules() if name != PACKAGE}
    for found in imports():
        # Under TYPE_CHECKING an import never runs. Inside a function it does: a cycle is only hidden.
        if found.target in graph and found.source.name in graph and not found.type_only:
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
    rows = []
    for found in imports():
        if not found.internal or found.room == found.source.room:
            continue
        for part in [*found.target.split("."), found.name or ""]:
            if _is_private(part):
                rows.append(f"{found.where}: '{part}' belongs to room '{found.room}'; make it public there")
    for module in modules().values():
        foreign = {
            found.alias
            for found in imports()
            if found.source is module and found.internal and found.name is None and found.room != module.room
        }
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and _is_private(node.attr) and dotted(node.value) in foreign:
                rows.append(f"{module.at(node.lineno)}: '{dotted(node)}' reaches into another room")
    report(rows)

"""Imports only point down the list of layers in docs/architecture.md."""

import ast
from pathlib import Path

import neurontune_peft

PACKAGE = Path(neurontune_peft.__file__).parent

# From the ground up; a module may import from its own layer and from those before it.
LAYERS = (
    ("checks", "choices", "neurons", "objectives", "judges"),
    ("sites", "prompts"),
    ("tuner", "attribution", "selection"),
    ("training", "export"),
    ("evaluation",),
    ("report", "hub"),
    ("pipeline", "playground", "cli", "__main__"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def part_of(module: str) -> str:
    """`neurontune_peft.tuner.layer` -> `tuner`."""
    return module.split(".")[1]


def imported_modules(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            modules.add(node.module or "")
            if node.module == "neurontune_peft":
                modules |= {f"neurontune_peft.{alias.name}" for alias in node.names}
    return modules


def sources() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def test_every_module_belongs_to_a_layer():
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in sources()}
    assert parts <= set(LEVEL)


def test_imports_only_point_down():
    for path in sources():
        own = LEVEL[path.relative_to(PACKAGE).parts[0].removesuffix(".py")]
        for module in imported_modules(path):
            if module.startswith("neurontune_peft."):
                assert LEVEL[part_of(module)] <= own, f"{path.name} imports {module}, which lies above it"
            assert module != "neurontune_peft", f"{path.name} imports the package's front; import the module itself"


def test_nothing_unpickles_or_runs_remote_code():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not {"pickle", "joblib", "dill", "cloudpickle"} & imported_modules(path), path
        assert "trust_remote_code=True" not in text, path
        assert "torch.load(" not in text, path

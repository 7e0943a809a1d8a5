"""What the shape of the code must be: who imports whom, one table of names, forbidden calls, sizes, docstrings."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from moodal.build import RECIPES, recipes
from moodal.core.method import Method, MethodConfig
from moodal.core.spec import MODALITIES
from moodal.data import CORPORA
from moodal.data.corpus import CorpusFacts, ReaderConfig
from moodal.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "moodal"
FILES = sorted(PACKAGE.rglob("*.py"))

#: package or top module -> what of ours it may import, besides itself. "moodal" alone gives the version.
BELOW = ("core", "data", "layers", "losses", "methods", "features", "explain", "metrics", "train", "interop")
ALLOWED: dict[str, tuple[str, ...]] = {
    "core": (),
    "layers": ("core",),
    "losses": ("core", "layers.masks"),
    "methods": ("core", "layers", "losses"),
    "data": ("core",),
    "features": ("core", "data", "layers"),
    "explain": ("core", "data", "features"),
    "metrics": ("core",),
    "train": ("core", "metrics"),
    "interop": ("core", "data", "methods", "layers", "losses", "metrics", "train"),
    "console": ("core",),
    "derive": BELOW,
    "prepare": (*BELOW, "derive"),
    "missing": (*BELOW, "derive", "prepare"),
    "build": (*BELOW, "derive", "prepare", "missing"),
    "bench": ("build", "train", "metrics", "core", "data"),
    "jobs": (*BELOW, "prepare", "build", "bench", "console"),
    "robustness": (*BELOW, "build", "bench", "console"),
    "zero_shot": (*BELOW, "derive", "prepare", "build"),
    "model_card": ("core", "data", "methods"),
    "pretrained": (*BELOW, "prepare", "build", "model_card"),
    "live": (*BELOW, "derive", "prepare", "pretrained"),
    "prediction": ("core", "data", "explain"),
    "predictor": (*BELOW, "build", "live", "model_card", "prediction", "pretrained"),
    "serving": ("core", "features", "predictor"),
    "commands": (*BELOW, "prepare", "build", "bench", "console", "jobs", "robustness"),
    "clip_commands": (
        *BELOW,
        "console",
        "commands",
        "jobs",
        "pretrained",
        "prediction",
        "predictor",
        "serving",
        "zero_shot",
    ),
    "cli": ("core", "console", "commands", "clip_commands"),
    "__main__": ("cli",),
    "__init__": (),
}


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), name_of(file))


def imports_of(file: Path) -> Iterator[str]:
    """Dotted modules of ours that a file imports anywhere in it, without "moodal."."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(file)}:{node.lineno} imports relatively"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "moodal" else [module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("moodal.") for name in names if name.startswith("moodal."))


def layer_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("layer", sorted({layer_of(file) for file in FILES}))
def test_imports_go_down_only(layer):
    assert layer in ALLOWED, f"{layer} is not in the table of who may import whom"
    may = (layer, *ALLOWED[layer])
    wrong = [
        f"{name_of(file)} imports {module}"
        for file in FILES
        if layer_of(file) == layer
        for module in imports_of(file)
        if not any(module == name or module.startswith(f"{name}.") for name in may)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_table_of_methods_is_the_folder_of_methods():
    files = {
        f"moodal.methods.{file.stem}" for file in (PACKAGE / "methods").glob("*.py") if not file.stem.startswith("_")
    }
    assert {METHODS.module(name) for name in METHODS} == files


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_what_it_should_be(name):
    cls = METHODS[name]
    assert issubclass(cls, Method) and issubclass(cls.Config, MethodConfig)
    assert cls.title and cls.paper and cls.status in ("parity", "faithful", "after")
    assert set(cls.exceptions) <= {"padding", "rows", "missing", "gradients"}
    source = importlib.import_module(METHODS.module(name)).__doc__
    for heading in ("Paper ", "Code ", "Shapes "):
        assert heading in source, f"the header of {name} lacks '{heading.strip()}'"


@pytest.mark.parametrize("name", CORPORA)
def test_every_corpus_is_what_it_should_be(name):
    reader = CORPORA[name]
    assert issubclass(reader.Config, ReaderConfig) and isinstance(reader.facts, CorpusFacts)
    assert reader.facts.name == name and reader.facts.licence and reader.facts.source
    assert callable(reader.read)


def test_every_recipe_names_a_corpus_and_a_method():
    for recipe in recipes():
        corpus, _, method = recipe.partition("/")
        assert corpus in CORPORA and method in METHODS, recipe
    assert all(path.suffix == ".yaml" for path in RECIPES.rglob("*") if path.is_file())


def calls_of(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """("receiver.name", call) of every call in a file."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


#: besides training: memories that methods share, and the comparison of gradients with those of authors' code.
MAY_DIFFERENTIATE = ("moodal/layers/memory.py", "moodal/interop/parity_text.py")


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_only_training_moves_parameters(file):
    if layer_of(file) == "train" or name_of(file) in MAY_DIFFERENTIATE:
        return
    moving = re.compile(r"(\.backward|\.requires_grad_|[Oo]ptim\w*(\[.*\])?\.(step|zero_grad))$")
    wrong = [f"{name_of(file)}:{call.lineno} {name}" for name, call in calls_of(file) if moving.search(name)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_nothing_in_a_file_is_ever_run(file):
    """No pickle, no torch.load without weights_only, no eval, no shell."""
    wrong = []
    for name, call in calls_of(file):
        given = {key.arg: ast.unparse(key.value) for key in call.keywords}
        unsafe = name in (
            "pickle.load",
            "pickle.loads",
            "joblib.load",
            "yaml.load",
            "eval",
            "exec",
            "os.system",
            "pickle.Unpickler",
        )
        unsafe |= name.endswith("torch.load") and given.get("weights_only") != "True"
        unsafe |= given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False"
        if unsafe:
            wrong.append(f"{name_of(file)}:{call.lineno} {name}")
    assert not wrong, "\n".join(wrong)


def words_of(file: Path) -> Iterator[tuple[int, str]]:
    """Identifiers and string constants of a file, docstrings left out."""
    tree = tree_of(file)
    documented = [n for n in ast.walk(tree) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    docs = {id(n.body[0].value) for n in documented if n.body and isinstance(n.body[0], ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr


def mentions(file: Path, names: set[str]) -> list[str]:
    pattern = re.compile(rf"(?<![A-Za-z])({'|'.join(map(re.escape, names))})(?![A-Za-z])", re.IGNORECASE)
    return [f"{name_of(file)}:{line} {word!r}" for line, word in words_of(file) if pattern.search(word)]


#: names of corpora that are ordinary words too
PLAIN_WORDS = {"folder"}


def test_methods_and_layers_know_no_corpus():
    wrong = [
        found
        for folder in ("methods", "layers", "losses")
        for file in (PACKAGE / folder).glob("*.py")
        for found in mentions(file, set(CORPORA) - PLAIN_WORDS)
    ]
    assert not wrong, "\n".join(wrong)


def test_training_knows_no_method_and_no_corpus():
    schedules = {"linear"}  # of the learning rate: a word that training knows too
    names = {name for name in METHODS if name not in (*MODALITIES, *schedules)} | (set(CORPORA) - PLAIN_WORDS)
    wrong = [found for file in (PACKAGE / "train").glob("*.py") for found in mentions(file, names)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_are_short(file):
    count = len(file.read_text(encoding="utf-8").splitlines())
    assert count <= 400, f"{name_of(file)} has {count} lines"


def public(tree: ast.Module) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    """Functions and classes of a module whose names do not begin with an underscore."""
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            yield node


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_what_is_public_is_documented_and_annotated(file):
    tree, wrong = tree_of(file), []
    if tree.body and not ast.get_docstring(tree):
        wrong.append(f"{name_of(file)} has no docstring")
    for node in public(tree):
        if not ast.get_docstring(node):
            wrong.append(f"{name_of(file)}:{node.lineno} {node.name} has no docstring")
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if node.returns is None or any(argument.annotation is None for argument in arguments):
                wrong.append(f"{name_of(file)}:{node.lineno} {node.name} is not annotated")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_functions_are_short(file):
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            limit = 90 if name_of(file) == "moodal/cli.py" and node.name == "parser" else 45
            assert length <= limit, f"{name_of(file)}:{node.lineno} {node.name} has {length} lines"


def test_no_file_names_a_place_of_one_machine():
    places = re.compile(r"(?<![\w.])/(?:" + "|".join(("work", "root", "home", "Users")) + r")/\w|[A-Z]:\\\\\w")
    kinds = {".py", ".md", ".yaml", ".toml", ".txt", ".html", ".sh", ""}
    wrong = []
    for folder in ("moodal", "tests", "docs", "benchmarks", "."):
        found = (ROOT / folder).glob("*") if folder == "." else (ROOT / folder).rglob("*")
        for file in found:
            if file.is_file() and file.suffix in kinds and "__pycache__" not in file.parts:
                lines = file.read_text(encoding="utf-8", errors="ignore").splitlines()
                wrong += [
                    f"{name_of(file)}:{n} {line.strip()[:80]}" for n, line in enumerate(lines, 1) if places.search(line)
                ]
    assert not wrong, "\n".join(wrong)


def test_test_files_have_names_of_their_own():
    """pytest imports test files by their name alone."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)

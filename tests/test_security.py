"""What the project promises never to do: unpickle, evaluate text, run a shell or a model's code.

The syntax trees of the package and its benchmarks are read, with every import resolved, so that an
alias hides nothing. What this cannot see, such as a name built at run time, reviews have to.
"""

import ast
import builtins
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("rlvr_decode", "kernels", "server", "training", "benchmarks")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

# Modules that turn bytes into objects, or text into code.
MODULES = {
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"),
    *("jsonpickle", "hickle", "code", "codeop", "runpy", "imp", "pty", "pexpect"),
}
CALLS = {
    *("eval", "exec", "compile", "__import__"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("torch.load", "torch.save", "torch.jit.load", "torch.package.PackageImporter"),
    *("torch.hub.load", "numpy.load", "numpy.save", "pandas.read_pickle", "sympy.sympify"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"),
    *("asyncio.create_subprocess_shell", "tempfile.mktemp"),
}
PREFIXES = ("os.exec", "os.spawn", "os.posix_spawn")
# The only value that these may be given.
KEYWORDS = {
    "trust_remote_code": "False",
    "shell": "False",
    "allow_pickle": "False",
    "weights_only": "True",
}
# Setting one would have vLLM unpickle what other processes send, or run what a request names.
SWITCHES = ("VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_SERVER_DEV_MODE")


def offences(source):
    """Every forbidden thing in the text of a module, as its line and its name."""
    tree = ast.parse(source)
    names = dict(imported_names(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found = [name for name in modules if name.split(".")[0] in MODULES]
        elif isinstance(node, ast.Name | ast.Attribute):
            # Also where it is not called: `map(eval, …)`.
            name = qualified(node, names)
            found = [name] if name in CALLS or name.startswith(PREFIXES) else []
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained"):
            # Left out, transformers asks whoever sits at the terminal.
            said = {each.arg for each in node.keywords}
            found = [] if "trust_remote_code" in said else [ast.unparse(node.func)]
        elif isinstance(node, ast.keyword) and node.arg in KEYWORDS:
            said = ast.unparse(node.value)
            found = [f"{node.arg}={said}"] if said != KEYWORDS[node.arg] else []
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = [switch for switch in SWITCHES if node.value == switch]
        else:
            continue
        yield from ((node.lineno, each) for each in found)


def imported_names(tree):
    """What each name that an import binds stands for, wherever in the module it is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                yield each.asname or each.name.split(".")[0], each.asname and each.name
        elif isinstance(node, ast.ImportFrom):
            for each in node.names:
                yield each.asname or each.name, f"{node.module}.{each.name}"


def qualified(node, names):
    """The dotted name of an expression with its imports resolved; "" if it is none."""
    if isinstance(node, ast.Name):
        name = names.get(node.id) or node.id
    elif isinstance(node, ast.Attribute):
        name = f"{qualified(node.value, names)}.{node.attr}"
    else:
        return ""
    return name.removeprefix("builtins.")


@pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in SOURCES])
def test_nothing_is_unpickled_evaluated_or_run_by_a_shell(path):
    found = list(offences(path.read_text(encoding="utf-8")))
    if path.is_relative_to(ROOT / "benchmarks"):  # which open checkpoints of their own making
        found = [each for each in found if not each[1].endswith(".from_pretrained")]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import numpy, dill as d",
        "def f():\n    import marshal",
        "eval('1')",
        "list(map(eval, texts))",
        "exec('1')",
        "compile('1', '', 'eval')",
        "__import__('os')",
        "import builtins\nbuiltins.eval('1')",
        "from builtins import eval as calculate\ncalculate('1')",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x')",
        "from torch import load\nload('x')",
        "from torch import load as read\nread('x')",
        "import yaml\nyaml.load('x')",
        "import os\nos.system('x')",
        "from os import popen\npopen('x')",
        "import os\nos.execv('x', [])",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "import subprocess\nsubprocess.run('x', shell=shell)",
        "import subprocess\nsubprocess.getoutput('x')",
        "Model.load('x', trust_remote_code=True)",
        "AutoModel.from_pretrained('x')",
        "Model.load('x', trust_remote_code=args.trust)",
        "read('x', weights_only=False)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import os\nos.environ['VLLM_ALLOW_INSECURE_SERIALIZATION'] = '1'",
    ],
)
def test_each_of_them_would_be_found(source):
    assert list(offences(source))


@pytest.mark.parametrize(
    "source",
    [
        "import re\nre.compile('x')",
        "import torch\ntorch.compile(f)",
        "model.eval()",
        "from safetensors.torch import load_file\nload_file('x')",
        "import yaml\nyaml.safe_load('x')",
        "import subprocess\nsubprocess.run(['x'], shell=False)",
        "Model.load('x', trust_remote_code=False)",
    ],
)
def test_what_only_looks_like_one_is_not(source):
    assert list(offences(source)) == []


def test_the_forbidden_builtins_exist():
    assert all(hasattr(builtins, name) for name in CALLS if "." not in name)
    assert len(SOURCES) > 100

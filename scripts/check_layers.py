#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks the rules of the source tree that no compiler checks: check_layers.py [ROOT].

Layers include only downwards and CMake links them likewise; nothing in the core includes the wing of reference systems
(performer/references); kernels and data know no LibTorch; no OpenMP; files carry their licence line; files and functions
stay short. Each finding names file, line, what was found and the rule; any finding fails.
"""
import pathlib
import re
import sys

# Which layers each layer may include, beside itself.
MAY_INCLUDE = {
    "base": set(),
    "kernels": {"base"},
    "data": {"base"},
    "ops": {"kernels", "base"},
    "nn": {"ops", "kernels", "base"},
    "models": {"nn", "ops", "kernels", "data", "base"},
    "distributed": {"nn", "ops", "kernels", "base"},
    "train": {"distributed", "models", "nn", "ops", "kernels", "data", "base"},
    "infer": {"distributed", "models", "nn", "ops", "kernels", "data", "base"},
    "studies": {"models", "nn", "ops", "kernels", "data", "base"},
    "bench": {"train", "distributed", "studies", "models", "nn", "ops", "kernels", "data", "base"},
    "references": {"train", "distributed", "infer", "models", "nn", "ops", "kernels", "data", "base"},
    "cli": {"references", "bench", "train", "infer", "distributed", "studies", "models", "nn", "ops", "kernels", "data",
            "base"},
}
WITHOUT_TORCH = {"base", "kernels", "data"}
# The kernels as JAX calls them (python/performer/jax/ffi), which no layer includes.
PYTHON_MAY_INCLUDE = {"python", "kernels", "base"}

LONGEST_FILE, LONGEST_FUNCTION = 500, 60  # lines
LONGEST_DOCUMENT_LINE = 159  # characters
CONFLICT = re.compile(r"^(<{7}|>{7}|\|{7})( |$)")  # what a merge left undecided
# The first line of a function's body, as clang-format leaves it: at most two levels deep, ending with the brace.
FUNCTION = re.compile(r"^(  )?(?! |namespace\b|class\b|struct\b|enum\b|extern\b|union\b|#|//|\}).*\{$")

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
TORCH = re.compile(r"^(torch|ATen|c10|caffe2)/")
OPENMP = re.compile(r'#\s*pragma\s+omp\b|_Pragma\s*\(\s*"omp\b')
CALL = re.compile(r"^\s*performer_(layer|tests)\(\s*(\w+)([^)]*)\)", re.MULTILINE)

FOLDERS = ("performer", "cli", "python", "tests", "benchmarks", "recipes", "examples", "scripts", "cmake", ".ci")
CODE = {".cpp", ".h"}
RECORDINGS = "tests/models/pretrained/"  # as other programs wrote them
NEEDS_LICENCE = CODE | {".py", ".sh", ".cmake", ".txt", ""}


def layer_of(path):
    """The layer that a file belongs to: performer/LAYER/..., cli/..., python/..., tests/LAYER/...; None elsewhere."""
    parts = path.parts
    if parts[0] in ("performer", "tests") and len(parts) > 2:
        return parts[1]
    return parts[0] if parts[0] in ("cli", "python") else None


def links_of(cmake_text, kind):
    """Layer -> layers on the link line of performer_layer() or performer_tests()."""
    return {name: set(re.findall(r"performer::(\w+)", rest))
            for call, name, rest in CALL.findall(cmake_text) if call == kind}


def closure(links, layer):
    """All layers that `layer` reaches through link lines."""
    reached, open_layers = set(), list(links.get(layer, ()))
    while open_layers:
        name = open_layers.pop()
        if name not in reached:
            reached.add(name)
            open_layers += links.get(name, ())
    return reached


class Checker:
    def __init__(self, root):
        self.root = root
        self.findings = []
        self.layer_links = links_of((root / "CMakeLists.txt").read_text(), "layer")
        cli = (root / "cli/CMakeLists.txt").read_text()
        self.layer_links["cli"] = set(re.findall(r"performer::(\w+)", cli)) - {"cli"}
        self.test_links = links_of((root / "tests/CMakeLists.txt").read_text(), "tests")

    def report(self, path, line, message):
        self.findings.append(f"{path}:{line}: {message}")

    def check_links(self):
        for layer, allowed in MAY_INCLUDE.items():
            linked = closure(self.layer_links, layer)
            if linked != allowed:
                self.report("cli/CMakeLists.txt" if layer == "cli" else "CMakeLists.txt", 1,
                            f"{layer} links {sorted(linked)}, the table of scripts/check_layers.py says {sorted(allowed)}")
        for layer in self.layer_links.keys() - MAY_INCLUDE.keys():
            self.report("CMakeLists.txt", 1, f"layer {layer} is not in the table of scripts/check_layers.py")

    def allowed_for(self, path, layer):
        """Tests may include what their link line reaches; test folders without one (shared helpers) everything."""
        if path.parts[0] == "python":
            return PYTHON_MAY_INCLUDE
        if path.parts[0] != "tests":
            return MAY_INCLUDE.get(layer, set()) | {layer}
        direct = self.test_links.get(layer, MAY_INCLUDE.keys())
        return direct | set().union(*(closure(self.layer_links, name) for name in direct))

    def check_include(self, path, number, quote, included):
        layer = layer_of(path)
        torch_free = path.parts[0] == "performer" and layer in WITHOUT_TORCH
        if TORCH.match(included):
            if torch_free:
                self.report(path, number, f"includes {included}: {layer} must not know LibTorch")
            elif included in ("torch/torch.h", "torch/all.h"):
                self.report(path, number, f"includes {included}: include the narrow header of what is used")
        elif included.startswith(("performer/", "cli/", "python/")) and layer:
            target = layer_of(pathlib.PurePosixPath(included))
            allowed = self.allowed_for(path, layer)
            if target not in allowed:
                self.report(path, number, f"includes {included}: {path.parent} may include only {sorted(allowed)}")
        elif quote == '"' and not included.startswith(("performer/", "cli/", "python/", "tests/")):
            self.report(path, number, f'includes "{included}": own headers are named from the root of the tree')

    def check_file(self, path):
        text = (self.root / path).read_text()
        lines = text.splitlines()
        self.check_conflicts(path, lines)
        if not any("SPDX-License-Identifier: Apache-2.0" in line for line in lines[:3]):
            self.report(path, 1, "the line SPDX-License-Identifier: Apache-2.0 is missing at the top")
        if len(lines) > LONGEST_FILE:
            self.report(path, len(lines), f"longer than {LONGEST_FILE} lines: split it")
        if path.suffix not in CODE:
            return
        if path.suffix == ".h" and "#pragma once" not in lines and not path.name.endswith("-inl.h"):
            self.report(path, 1, "#pragma once is missing")
        self.check_functions(path, lines)
        for number, line in enumerate(lines, 1):
            if OPENMP.search(line):
                self.report(path, number, "OpenMP pragma: parallel work goes through performer/base/executor.h")
            if match := INCLUDE.match(line):
                self.check_include(path, number, *match.groups())

    def check_conflicts(self, path, lines):
        for number, line in enumerate(lines, 1):
            if CONFLICT.match(line):
                self.report(path, number, "a conflict of a merge that nobody decided: keep one side or both")

    # A list of configuration fields has a line or two for each and nothing to split.
    def check_functions(self, path, lines):
        begin, end = None, None
        for number, line in enumerate(lines, 1):
            if begin is None:
                match = FUNCTION.match(line)
                if match and "(" in line and "void fields(Self& self, Visit&& visit)" not in line:
                    begin, end = number, (match.group(1) or "") + "}"
            elif line.rstrip(";") == end or line.startswith(end + " //"):
                if number - begin + 1 > LONGEST_FUNCTION:
                    self.report(path, begin, f"a function of {number - begin + 1} lines: split it, the limit is "
                                             f"{LONGEST_FUNCTION}")
                begin = None

    def run(self):
        self.check_links()
        files = [self.root / "CMakeLists.txt"]
        for folder in FOLDERS:
            files += sorted(path for path in (self.root / folder).rglob("*") if path.is_file()
                            and not path.relative_to(self.root).as_posix().startswith(RECORDINGS))
        checked = 0
        for file in files:
            path = file.relative_to(self.root)
            if path.suffix in NEEDS_LICENCE and "__pycache__" not in path.parts and "testdata" not in path.parts:
                self.check_file(path)
                checked += 1
        for path in sorted([*self.root.glob("*.md"), *self.root.glob("docs/*.md")]):
            lines = path.read_text().splitlines()
            self.check_conflicts(path.relative_to(self.root), lines)
            for number, line in enumerate(lines, 1):
                if len(line) > LONGEST_DOCUMENT_LINE:
                    self.report(path.relative_to(self.root), number, f"a line of {len(line)} characters: break it")
        return checked


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent).resolve()
    checker = Checker(root)
    checked = checker.run()
    for finding in checker.findings:
        print(finding, file=sys.stderr)
    if checker.findings:
        sys.exit(f"check_layers: {len(checker.findings)} findings")
    print(f"check_layers: {checked} files, no findings")


if __name__ == "__main__":
    main()

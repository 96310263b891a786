"""`python -m fuzz`: search every target for inputs that break it, or run one again on the input that did.

python -m fuzz --runs 1000000 --seed 1          all targets, two processes; the last line is a summary in JSON
python -m fuzz --runs 100000 --only topic gguf  these targets
python -m fuzz --again topic FILE               the check of one target on one input, with its traceback
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fuzz.target import Target

GUIDING = ("base_model", "broker", "configuration", "coordinator", "edge_node", "schemas", "mcap", "tomllib")


def main() -> int:
    """Exit codes: 0 nothing was found, 1 something was, 2 wrong usage, 130 interrupted."""
    arguments = _arguments()
    if arguments.again:
        name, file = arguments.again
        from fuzz.targets import target_of

        target_of(name).check(Path(file).read_bytes())
        print(f"{name} takes {file} as it should")
        return 0
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: pip install -c constraints.txt atheris (Linux, x86-64)", file=sys.stderr)
        return 2
    with open(os.devnull, "w") as nowhere:
        out, sys.stderr = sys.stderr, nowhere  # it names every module that it takes up
        try:
            with atheris.instrument_imports(include=GUIDING):
                targets: Sequence[Target] = importlib.import_module("fuzz.targets").TARGETS
        finally:
            sys.stderr = out
    if arguments.only:
        unknown = set(arguments.only) - {target.name for target in targets}
        if unknown:
            print(f"there is no target {', '.join(sorted(unknown))}", file=sys.stderr)
            return 2
        targets = [target for target in targets if target.name in arguments.only]
    return _search(targets, arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz every decoder.")
    parser.add_argument("--runs", type=int, default=1_000_000, help="executions of all targets together")
    parser.add_argument(
        "--seed", type=int, default=1, help="the same seed makes the same search, as long as it goes well"
    )
    parser.add_argument("--processes", type=int, default=2, help="targets at a time")
    parser.add_argument("--only", nargs="+", default=(), metavar="TARGET", help="these targets alone")
    parser.add_argument("--out", type=Path, default=Path("fuzz-crashes"), help="where inputs that break one are kept")
    parser.add_argument("--corpus", type=Path, help="keep all that the search finds here, for `fuzz.corpus fold`")
    parser.add_argument("--again", nargs=2, metavar=("TARGET", "FILE"), help="run one target on one input")
    return parser.parse_args()


def _search(targets: Sequence[Target], arguments: argparse.Namespace) -> int:
    from fuzz.fleet import search_all

    with tempfile.TemporaryDirectory(prefix="alignfed-fuzz-") as folder:
        found = search_all(
            targets,
            runs=arguments.runs,
            seed=arguments.seed,
            processes=arguments.processes,
            corpus=arguments.corpus or Path(folder) / "corpus",
            crashes=arguments.out,
        )
    print(json.dumps(found.summary()), flush=True)
    return 130 if found.interrupted else 1 if found.crashes else 0


if __name__ == "__main__":
    raise SystemExit(main())

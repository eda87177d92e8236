"""Write down what TensorFlow's tool prints for the fixtures, in ``tests/cli/golden/tensorflow``.

Needs TensorFlow: ``PYTHONPATH=. .cache/venv-tf/bin/python tests/cli/make_golden.py``. Only for a new fixture
or a new release of TensorFlow or numpy; what changed is in the diff.
"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from tests.cli.tensorflow_golden import CASES, GOLDEN, calls_for, format_sections


def main() -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    from tensorflow.python.tools import inspect_checkpoint

    os.chdir(Path(__file__).parents[1] / "fixtures" / "tensorflow-2.21")
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, case in CASES.items():
        sections = {}
        for title, arguments in calls_for(case):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                inspect_checkpoint.print_tensors_in_checkpoint_file(case.prefix, *arguments)
            sections[title] = printed.getvalue()
        (GOLDEN / f"{name}.txt").write_text(format_sections(sections), encoding="utf-8", newline="")


if __name__ == "__main__":
    main()

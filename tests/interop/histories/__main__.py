"""Show a history that differs, cut: ``python -m tests.interop.histories SEED [SEED …] [--without RULE]``.

It runs in TensorFlow's environment, ``.cache/venv-tf``. Of several seeds, the first one that differs.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tests.interop.histories.compare import differences_of, explain, shortest
from tests.interop.histories.rules import ROWS, Rules
from tests.interop.histories.session import Session, tf1
from tests.interop.histories.steps import draw


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("last", type=int, nargs="?")
    parser.add_argument(
        "--without", choices=ROWS, action="append", default=[], help="a rule that is left out"
    )
    chosen = parser.parse_args()
    tf1.logging.set_verbosity(tf1.logging.FATAL)
    session = Session()
    for seed in range(chosen.seed, (chosen.last or chosen.seed) + 1):
        history = draw(seed)
        if differences_of(session, history, Rules(chosen.without)) is not None:
            print(f"seed {seed}, cut:")
            print(explain(*shortest(session, history, chosen.without)))
            return
    print("no difference")


if __name__ == "__main__":
    _main()

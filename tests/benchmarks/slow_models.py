"""The tests' fake model server in a process of its own, each answer after a delay; ends with its standard input.

python -m tests.benchmarks.slow_models SECONDS
"""

from __future__ import annotations

import sys

from tests.support.fake_models import Say, fake_models_in_a_thread


def main() -> None:
    with fake_models_in_a_thread() as server:
        server.delay = float(sys.argv[1])
        server.default = Say("yes")
        print(server.base_url.split(":")[2].split("/")[0], flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()

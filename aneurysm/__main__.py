"""The program: `aneurysm`, or `python -m aneurysm`."""

from __future__ import annotations

from typing import NoReturn

from aneurysm.cli.exits import end_at_once_on_sigterm


def main() -> NoReturn:
    """Run the command line."""
    # Before all else is imported, which takes seconds on a busy file system: the first process of a container ignores
    # signals that it does not handle.
    end_at_once_on_sigterm()
    from aneurysm.cli.main import main as run

    run()


if __name__ == "__main__":
    main()

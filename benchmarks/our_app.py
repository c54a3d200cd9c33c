"""The application as the command line serves it: python benchmarks/our_app.py RELEASE PORT [TOPOLOGY [INGRESS]]"""

import sys
from typing import Any

from serve_app.config import ServeConfig
from serve_app.run import run


def main(release: str, port: str, topology: Any = "collapsed", ingress: Any = "haproxy") -> None:
    """Serve until SIGTERM."""
    run(ServeConfig(release=release, topology=topology), port=int(port), ingress=ingress)


if __name__ == "__main__":
    main(*sys.argv[1:])

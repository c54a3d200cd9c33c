"""The application as the command line serves it: python benchmarks/our_app.py RELEASE PORT"""

import sys

from serve_app.config import ServeConfig
from serve_app.run import run

if __name__ == "__main__":
    run(ServeConfig(release=sys.argv[1]), port=int(sys.argv[2]))

"""What serves never loads what trains: import-linter cannot see this, a fresh process can."""

import subprocess
import sys

FORBIDDEN = ("recsys_ray.training", "recsys_ray.data", "recsys_ray.pipeline", "recsys_ray.config", "deepspeed")


def test_importing_the_application_brings_in_nothing_that_trains() -> None:
    code = "import serve_app.app, serve_app.run, sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "serve_app.deployments" in loaded
    assert [name for name in loaded if name.startswith(FORBIDDEN)] == []
    # Ray Serve reads its switches when it is imported, and `run` still has to set them.
    assert "ray.serve" not in loaded

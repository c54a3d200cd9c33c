"""`python -m recsys_ray` is the console script, for where only a working directory travels (`ray job submit`)."""

from recsys_ray.cli import main

if __name__ == "__main__":
    main()

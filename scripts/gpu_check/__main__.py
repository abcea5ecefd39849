"""`.venv/bin/python scripts/gpu_check`, from any folder."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])  # the project, not this folder: modules here have plain names

from scripts.gpu_check.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())

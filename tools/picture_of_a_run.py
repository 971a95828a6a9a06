"""Draw docs/images/run.svg: the first page's picture, made of what the commands really print.

python -m tools.picture_of_a_run
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "run.svg"
COMMANDS = (
    'HAL_BACKEND=cpu hal generate examples/tiny-v4 --prompt "The for statement" --max-new-tokens 120',
    "HAL_BACKEND=cpu hal explain attn.attend",
)
WIDTH = 100


def main() -> None:
    """Run every command and write the picture."""
    page = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
    environment |= {"FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    for command in COMMANDS:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=ROOT,
            env=environment,
            check=True,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        page.print(Text.assemble(("$ ", "green"), (command, "bold")))
        page.print(Text.from_ansi(done.stdout))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    page.save_svg(str(PICTURE), title="hal")
    print(PICTURE.relative_to(ROOT))


if __name__ == "__main__":
    main()

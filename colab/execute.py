"""Execute notebooks from a clean kernel and keep what they show in them.

    python colab/execute.py 02_reliability 03_definitions
    python colab/execute.py --folder=elsewhere        # all of them

They run in a folder (the checkout, unless another is named) and write their work directories below runs/ there; one
that lies there finished is not done again, but shown. Kept are the results: not notes, nor times of execution.
"""

import argparse
import base64
import io
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent
LARGE = 140_000  # bytes of a picture that is kept as it is
SHADES = 64
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def execute(notebook: nbformat.NotebookNode, folder: Path, variables: Mapping[str, str]) -> nbformat.NotebookNode:
    """Run the cells of a notebook in a folder and return it with what they show.

    Args:
      notebook: is changed.
      folder: where the kernel starts; a link to configs/ is put there if there is none.
      variables: of the environment of the kernel, beside those of this process.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    if not (folder / "configs").exists():
        (folder / "configs").symlink_to(HERE.parent / "configs")
    client = NotebookClient(notebook, timeout=None, record_timing=False, resources={"metadata": {"path": str(folder)}})
    client.execute(env=os.environ | variables)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [plain(output) for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def plain(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Leave out the colours of text, whose HTML is many times its size, and most shades of large pictures."""
    if output.get("data", {}).get("text/html", "").startswith("<pre"):
        del output.data["text/html"]
        output.data["text/plain"] = COLOURS.sub("", output.data["text/plain"])
    picture = base64.b64decode(output.get("data", {}).get("image/png", ""))
    if len(picture) > LARGE:
        out = io.BytesIO()
        Image.open(io.BytesIO(picture)).convert("RGB").quantize(SHADES).save(out, "png", optimize=True)
        output.data["image/png"] = base64.b64encode(out.getvalue()).decode()
    return output


def main() -> None:
    """Execute the notebooks that are named and write them back."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="such as 02_reliability; none: all")
    parser.add_argument("--folder", type=Path, default=HERE.parent, help="where they run (default: the checkout)")
    asked = parser.parse_args()
    for name in asked.names or sorted(path.stem for path in HERE.glob("*.ipynb")):
        path = HERE / f"{name}.ipynb"
        print(f"executing {name}", file=sys.stderr)
        # The source of this checkout, whatever is installed.
        found = execute(nbformat.read(path, as_version=4), asked.folder, {"PYTHONPATH": str(HERE.parent)})
        nbformat.validate(found)
        nbformat.write(found, path)


if __name__ == "__main__":
    main()

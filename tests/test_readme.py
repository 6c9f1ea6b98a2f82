"""What the README shows is what there is."""

import re
from pathlib import Path

from lingregions.experiments import EXPERIMENTS
from lingregions.main import VERBS
from lingregions.regions.file import TORCH_LOADER

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_torch_loader_is_the_one_that_parity_runs():
    assert re.findall(r"```python\n(.*?)```", README, re.DOTALL) == [TORCH_LOADER]
    assert len([line for line in TORCH_LOADER.splitlines() if line]) <= 10


def test_every_experiment_has_its_line():
    assert set(re.findall(r"\| `configs/(\w+)\.py` \|", README)) == set(EXPERIMENTS)


def test_commands_name_verbs_and_configs_that_exist():
    verbs = re.findall(r"^    lingregions (\w+)", README, re.MULTILINE)
    assert verbs
    assert set(verbs) <= set(VERBS)
    for path in re.findall(r"--config=(\S+?):", README):
        assert (ROOT / path).is_file(), path


def test_linked_files_exist():
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_the_table_of_slices_is_the_generated_one():
    generated = (ROOT / "docs" / "slices.md").read_text()
    assert generated[generated.index("| model | slice |") :] in README

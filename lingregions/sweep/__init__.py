"""Sweep: one experiment at every cell of a grid over the fields of its config, in one folder, with one table for all.

    lingregions sweep definitions_seeds:smollm2 --workdir=W [--shard=2/4] [--dry-run]

A config of a sweep names the config of an experiment (`base`, a path relative to itself, with its variant), the values
of any of its fields (`grid`), and optionally single cells (`cells`); see `grid`. Each cell is a work directory of its
own, `W/cells/<its values>`, so a sweep that was killed goes on inside the cell where it stopped, and what a finished
cell wrote is checked and not done again. A cell that fails is noted in `W/failed/`, and the others go on. At the end
`W/results.csv` (and `W/effects.csv`) holds the rows of all cells behind the fields of the grid, and `W/report.html`
sets the cells side by side.

Several machines that share the folder share a sweep: `--shard=i/n` takes the cells i, i + n, i + 2n, ... in the order
of the grid, counted from 1. In a SLURM array of `--array=1-4`: `--shard=$SLURM_ARRAY_TASK_ID/4`. There is no scheduler:
a cell that another process works on is left to it. Whoever finds all cells finished writes the tables; the same
command without --shard does what is left, and writes them in any case.

What is cheap: a cell scores its texts anew, so what one scoring pass can serve belongs into one cell and not into the
grid: fractions (`select.fractions`), selectors, seeds of random regions (`select.seeds`), languages that are evaluated.
What needs other scores belongs into the grid: models, definitions, `seed` (which samples are drawn), `score.samples`.
"""

from collections.abc import Sequence

from lingregions.sweep import grid

__all__ = ["main"]


def main(words: Sequence[str]) -> int:
    """Run a sweep; returns the exit code: 1 if a cell failed.

    Args:
      words: the words after the verb.

    Raises:
      SettingsError: a mistake in the words, the sweep's config, or that of a cell.
      RunError: the folder cannot be used.
      Interrupted: a signal asked to stop.
    """
    asked = grid.ask(words)  # a wrong word ends here, before JAX is imported
    from lingregions.sweep import command

    return command.run(asked)

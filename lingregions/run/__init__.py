"""The work directory of a run: config and versions in; metrics, tables, named trees and resume points out.

Side effects live here (and in the writers of region files and reports, which use `replacing`). Everything on disk is
whole or absent: a file appears under its name in one step, an appended line that was cut is repaired at the next open.

    with Run.open(workdir, config) as run:
        columns = {"intervention": str, "language": str, "nll_nats": float}
        run.table("results", columns, keys=("intervention", "language"))
        if not run.rows("results"):
            run.add("results", {"intervention": "base", "language": "ar", "nll_nats": 3.1})

In a run of several processes all of them call the same methods in the same order; only process 0 writes (arrays apart,
which each process writes for its own shards), and what decides the flow (`rows`, `done`, `header`,
`stopping`) is one answer everywhere; `agree` makes one of anything else.
"""

from lingregions.run.files import InUse, RunError, Unavailable, replacing
from lingregions.run.workdir import Interrupted, Run, identities, verify

__all__ = [
    "InUse",
    "Interrupted",
    "Run",
    "RunError",
    "Unavailable",
    "identities",
    "replacing",
    "verify",
]

"""Count every network of the catalog and write catalog.csv: `python tests/models/accept_golden.py`.

The tests compare the table with the networks. Check the diff before you commit.
"""

from __future__ import annotations

from pathlib import Path

from convatlas.models.catalog import CATALOG, count_stats
from convatlas.models.stats import STATS_CSV, write_stats


def main() -> None:
    with Path(str(STATS_CSV)).open("w", encoding="utf-8", newline="") as table:
        write_stats(table, ((name, count_stats(name)) for name in CATALOG))


if __name__ == "__main__":
    main()

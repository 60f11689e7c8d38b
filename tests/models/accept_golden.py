"""Count every network of the catalog and write the table of facts: `python tests/accept_golden.py`.

The tests compare the table with the networks; this is how a new row gets in. Look at the difference before you commit.
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

from convatlas.models.catalog import CATALOG, FACTS, Facts, count


def main() -> None:
    with Path(str(FACTS)).open("w", encoding="utf-8", newline="") as table:
        writer = csv.DictWriter(
            table, ["name", *(field.name for field in dataclasses.fields(Facts))], lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows({"name": name, **dataclasses.asdict(count(name))} for name in CATALOG)


if __name__ == "__main__":
    main()

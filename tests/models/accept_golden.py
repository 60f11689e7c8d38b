"""Count every network of the catalog and write its index: `python tests/models/accept_golden.py`.

The tests compare the index with the networks. Check the diff of index.jsonl before you commit.
"""

from __future__ import annotations

from convatlas.models.catalog import CATALOG, entry_of, measure
from convatlas.models.describe import describe
from convatlas.models.index import write_index


def main() -> None:
    entries, descriptions = [], {}
    for name, row in CATALOG.items():
        measured = measure(name)
        entries.append(entry_of(name, row, measured))
        descriptions[name] = describe(row.card, measured)
    write_index(entries, descriptions)


if __name__ == "__main__":
    main()

"""One file an experiment: a claim, its protocol, and what would confirm it. `registry` finds every file here."""

"""`python -m convatlas` is the `convatlas` command."""

from convatlas.cli.app import main

main()

"""`python -m convatlas` is the `convatlas` command."""

from convatlas.cli.main import main

main()

"""`python -m aneurysm` is the command `aneurysm`."""

from aneurysm.cli.main import main

main()

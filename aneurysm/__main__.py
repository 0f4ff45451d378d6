"""`python -m aneurysm` is the command `aneurysm`."""

from cli.main import main

main()

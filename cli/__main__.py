"""`python -m adjoint_meta.cli`."""

from .main import main

main()

"""Studies: what solvers and adjoints cost and how accurate they are, measured."""

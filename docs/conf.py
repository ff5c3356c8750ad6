"""Sphinx configuration."""

project = "adjoint-meta"
author = "The adjoint-meta authors"
copyright = "2026, the adjoint-meta authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
exclude_patterns = ["_build"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autoclass_content = "class"

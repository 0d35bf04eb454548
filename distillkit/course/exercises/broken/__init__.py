"""Broken functions, to be mended: notebooks show them as they stand here, without type hints."""

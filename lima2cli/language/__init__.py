"""Document to Pipeline: typed, names resolved."""

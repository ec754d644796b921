"""Turn a Document into a Pipeline: typed, names resolved."""

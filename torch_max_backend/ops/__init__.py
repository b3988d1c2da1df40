"""Bodies of lowerings that are too long for a row of the table."""

"""Plans as a person reads them: words, tables, pictures."""

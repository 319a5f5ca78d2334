"""Reading pictures well."""

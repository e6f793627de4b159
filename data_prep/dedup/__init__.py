"""Detection of exact and near duplicates among all documents of a build."""

"""Exact and near duplicates among all documents of a build."""

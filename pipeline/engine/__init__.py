"""Exact execution of a generator on images of any size: tensors only, no files."""

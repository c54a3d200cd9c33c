"""Filters: conditions on catalogue fields, compiled to the set of items that may come back."""

from recsys_ray.retrieval.filters.compiled import CompiledFilters, allowed_items
from recsys_ray.retrieval.filters.language import AllOf, AnyOf, Equals, Filter, In, Not, Range, canonical

__all__ = [
    "AllOf",
    "AnyOf",
    "CompiledFilters",
    "Equals",
    "Filter",
    "In",
    "Not",
    "Range",
    "allowed_items",
    "canonical",
]

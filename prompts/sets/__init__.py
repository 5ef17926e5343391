"""Prompt sets that are computed, or fetched from those who wrote them: one family to a file, the listing is the registry.

A family has `SETS` (the loader of each set, by the set's name), `SOURCE` and `LICENCE`. What two of them need begins with an underscore.
"""

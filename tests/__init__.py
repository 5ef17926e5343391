"""A package, so that `tests.toy` is this folder also where a dependency installs a package called tests."""

"""The checker of annotations that tests run with: an int is a float, as for Python's own type checkers."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))

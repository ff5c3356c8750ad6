"""What can be wrong with data: it is not there, or it is not what it should be."""


class MissingDataError(RuntimeError):
    """The data is not there; the message says which file to put where, and the command that fetches it."""


class DataError(ValueError):
    """The data is there but corrupted or malformed; the message says where, what was got and what was expected."""

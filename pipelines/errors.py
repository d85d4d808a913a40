"""The one error that speaks to a user."""


class UserError(Exception):
    """A mistake the user can mend: one line with what was wrong, the value, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """

"""The one exception that users see."""


class UserError(Exception):
    """Something the user can mend: one line that names the file and the remedy.

    Command lines print it without a traceback and exit with code 2.
    """

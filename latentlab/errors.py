"""The one error that a person, not a programmer, is meant to read."""


def first_line(error: object) -> str:
    """First line of an error's text, at most 200 characters, or the name of its type where it has no text."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


class UserError(Exception):
    """A mistake of the user's or a failure of the surroundings, told in one line.

    The message says what was wrong, where, and what would be right. The command line prints
    it as `error: …` without a traceback and exits with `exit_code`.
    """

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code

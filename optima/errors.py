"""The named errors of the project; the CLI turns each into one line and an exit status.

A message says place, value, rule and remedy, in this order, so that the reader can act on it
without reading code.
"""


class OptimaError(Exception):
    """Base of every error a user can act on; the CLI prints it as one line and exits with 1."""


class UsageError(OptimaError):
    """The input (recipe, option, path, data file) is wrong; the CLI exits with 2."""


class RecipeError(UsageError):
    """A recipe or an override breaks a rule of the schema."""


class DataError(UsageError):
    """A dataset is missing, unreadable, or has more malformed rows than allowed."""


class EnvironmentNotFoundError(UsageError):
    """A conda name or prefix path does not lead to a usable Python environment."""


class ModelError(UsageError):
    """A model cannot be used: missing files, no chat template, no end of turn."""


class RunBusyError(UsageError):
    """Another process owns the run directory."""


class StageError(OptimaError):
    """A stage cannot finish: nothing selected, too many failed conversations, disk full."""


class ProcessError(OptimaError):
    """A child process failed or missed its deadline; the message ends with its log's tail."""


class ServerError(OptimaError):
    """No server answered a request within its deadline, retries on other servers included."""


class ContextOverflowError(OptimaError):
    """A prompt, with the tokens asked for, does not fit into the model's context window."""

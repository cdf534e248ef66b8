"""agentd waits for a context file, runs one command with the secrets in it, and sends each line
the command prints, at once, as one WebSocket frame to an authenticated client.

The pure decisions live in :mod:`agentd.sansio`; every other module is a thin shell around them.
"""

__version__ = "0.1.0"

PROTOCOL = "agentd.v1"
"""The WebSocket subprotocol of the record stream, and what ``/healthz`` reports."""


class AgentdError(Exception):
    """What agentd raises when it cannot do what it was asked.

    Its message names the setting, key or path at fault and never a value that could be a secret.
    """

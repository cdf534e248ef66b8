"""Every decision agentd takes, without I/O: no trio, no socket, no file, no clock, no environment.

A module here turns what it is given into an answer; the shell around it gives and acts.
"""

"""Verbs of the command that need a task: each gives the core's measurements one of training's."""
